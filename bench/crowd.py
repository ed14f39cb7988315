"""Publishing to a crowd of waiting subscribers, against a bare loop of as many `sem_post`.

ours    the time of one `append` of one byte that is published at once, while all the copiers, in 8
        processes with a thread for each, wait in a read
raw     the time of a loop that posts as many semaphores, each waited for by a thread of the same
        8 processes

A sample is taken only when every waiter has come back from the one before, and 30 ms after that.
The two crowds are never there at once: a waiting copier looks up four times a second, which would
be on raw's clock.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

import posix_ipc
from crew import Crew, Gate
from report import CheckFailed, Goal, Options, Row, progress

from shmstream import BlobStreamer, InFlightCopier

_PROCESSES = 8
_SETTLE = 0.03  # s


def measure(options: Options) -> list[Row]:
    """One row: the medians of a publish and of a loop."""
    subscribers, samples = (200, 5) if options.quick else (1000, 20)
    names = [f"/bench-{os.getpid()}-{index}" for index in range(subscribers)]
    semaphores = [posix_ipc.Semaphore(each, posix_ipc.O_CREX, mode=0o600) for each in names]
    rounds = []
    try:
        with Crew(1 + _PROCESSES, pin=options.pin) as crew:
            for turn in range(options.rounds):
                progress(f"crowd, round {turn + 1} of {options.rounds}")
                kinds = (_ours, _raw) if turn % 2 == 0 else (_raw, _ours)
                taken = {kind: median(kind(crew, options, names, samples)) for kind in kinds}
                rounds.append((taken[_ours], taken[_raw]))
    finally:
        for semaphore in semaphores:
            semaphore.unlink()
            semaphore.close()
    row = Row(
        section="publish",
        case=f"to {subscribers} waiting subscribers",
        unit="ms",
        ours=median(ours for ours, _ in rounds) / 1e6,
        raw=median(raw for _, raw in rounds) / 1e6,
        ratios=[ours / raw for ours, raw in rounds],
        goal=Goal(1.3, at_least=False),
        notes={"samples": samples * options.rounds},
    )
    return [row]


def _ours(crew: Crew, options: Options, names: list[str], samples: int) -> list[int]:
    path = options.folder / "crowd"
    name = f"bench-{os.getpid()}"
    share = len(names) // _PROCESSES
    follow = partial(follow_all, name, share)
    publish = partial(publish_to_all, str(path), name, share * _PROCESSES, samples)
    taken, *_ = crew.run([publish, *[follow] * _PROCESSES])
    path.unlink()
    return taken


def _raw(crew: Crew, options: Options, names: list[str], samples: int) -> list[int]:
    path = options.folder / "counts"
    path.write_bytes(bytes(8 * len(names)))
    post = partial(post_all, str(path), names, samples)
    waits = [partial(wait_for_all, str(path), names, index, samples) for index in range(_PROCESSES)]
    taken, *_ = crew.run([post, *waits])
    path.unlink()
    return taken


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def publish_to_all(path: str, name: str, readers: int, samples: int, gate: Gate) -> list[int]:
    """The writer: nanoseconds of each publish. The first, which meets everybody, is not told."""
    _allow_descriptors(4096)
    taken = []
    with BlobStreamer.create(path, name=name, publish_interval=0) as streamer:
        gate()
        for number in range(1 + samples):
            while True:
                positions = [each.position for each in streamer.statistics().subscribers]
                if len(positions) != readers:
                    raise CheckFailed(f"{len(positions)} of {readers} subscribers are there")
                if min(positions) == number:
                    break
                time.sleep(0.005)
            time.sleep(_SETTLE)
            began = time.monotonic_ns()
            streamer.append(b"x")
            taken.append(time.monotonic_ns() - began)
        streamer.commit()
    return taken[1:]


def follow_all(name: str, count: int, gate: Gate) -> list[int]:
    """A process of `count` readers, each in a thread of its own."""
    _allow_descriptors(4096)

    def follow(copier: InFlightCopier) -> None:
        with copier:
            buffer = bytearray(64)
            while copier.readinto(buffer):
                pass

    copiers = [InFlightCopier.attach(name) for _ in range(count)]
    threads = [threading.Thread(target=follow, args=(each,), daemon=True) for each in copiers]
    for thread in threads:
        thread.start()
    gate()
    for thread in threads:
        thread.join()
    return []


def _counts(path: str) -> memoryview:
    """How often each waiter of raw has been woken; its mapping goes with the view."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def post_all(path: str, names: list[str], samples: int, gate: Gate) -> list[int]:
    """The poster: nanoseconds of each loop, but the first."""
    counts = _counts(path)
    semaphores = [posix_ipc.Semaphore(each) for each in names]
    posts = [each.release for each in semaphores]
    taken = []
    gate()
    for number in range(1 + samples):
        while min(counts) < number:
            time.sleep(0.005)
        time.sleep(_SETTLE)
        began = time.monotonic_ns()
        for post in posts:
            post()
        taken.append(time.monotonic_ns() - began)
    for semaphore in semaphores:
        semaphore.close()
    return taken[1:]


def wait_for_all(path: str, names: list[str], member: int, samples: int, gate: Gate) -> list[int]:
    """A process of waiters: every 8th semaphore, so that the loop goes round the processes."""
    counts = _counts(path)

    def follow(index: int) -> None:
        semaphore = posix_ipc.Semaphore(names[index])
        for number in range(1 + samples):
            semaphore.acquire()
            counts[index] = number + 1
        semaphore.close()

    mine = range(member, len(names), _PROCESSES)
    threads = [threading.Thread(target=follow, args=(index,), daemon=True) for index in mine]
    for thread in threads:
        thread.start()
    gate()
    for thread in threads:
        thread.join()
    return []
