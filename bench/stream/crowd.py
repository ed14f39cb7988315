"""Publishing to a crowd of waiting subscribers, against a bare loop of as many `sem_post`.

ours    the time of one `append` of one byte that is published at once, while all the copiers, in 8
        processes with a thread for each, wait in a read
raw     the time of a loop that posts as many semaphores, each waited for by a thread of the same
        8 processes that, once woken, does nothing but wait again
least   raw again, but each thread reads one byte of a file when it wakes
in C    raw and least once more, by a program in C (in_c.c): what the machine itself takes

A sample is taken only when every waiter has come back from the one before, and 30 ms after that.
The crowds are never there at once: a waiting copier looks up four times a second, which would be on
raw's clock.

Where there are fewer processors than processes that wake, the time of a loop is mostly that of the
readers it has woken, which the kernel lets run in between. So a second figure tells what publishing
costs the writer itself, in processor time, and `least` what the woken need at the least in Python,
where 125 threads that read contend for one interpreter lock.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import posix_ipc

from bench.crew import Crew, Gate, shared_words
from bench.report import CheckFailed, Goal, Options, Row, progress
from bench.stream import in_c
from shmstream import BlobStreamer, InFlightCopier

_PROCESSES = 8
_SETTLE = 0.03  # s

Times = list[tuple[int, int]]  # ns by the clock, and of processor time, of each sample
Figures = dict[str, tuple[float, float]]  # ours, raw, least -> the medians of their times


def measure(options: Options) -> list[Row]:
    """Rows for a publish by the clock and in processor time, and for the least that reads."""
    subscribers, samples = (200, 5) if options.quick else (1000, 20)
    names = [f"/bench-{os.getpid()}-{index}" for index in range(subscribers)]
    semaphores = [posix_ipc.Semaphore(each, posix_ipc.O_CREX, mode=0o600) for each in names]
    kinds: dict[str, Callable[[Crew, Options, list[str], int], Times]]
    kinds = {"ours": _ours, "raw": _raw, "least": partial(_raw, reading=True)}
    if (program := in_c.find(options.folder)) is not None:
        for kind, reading in {"raw in C": False, "least in C": True}.items():
            kinds[kind] = partial(_in_c, program, reading=reading)
    rounds: list[Figures] = []
    try:
        with Crew(1 + _PROCESSES, pin=options.pin) as crew:
            for turn in range(options.rounds):
                progress(f"crowd, round {turn + 1} of {options.rounds}")
                figures: Figures = {}
                for kind in list(kinds) if turn % 2 == 0 else reversed(kinds):
                    times = kinds[kind](crew, options, names, samples)
                    figures[kind] = (median(a for a, _ in times), median(b for _, b in times))
                rounds.append(figures)
    finally:
        for semaphore in semaphores:
            semaphore.unlink()
            semaphore.close()
    crowd = f"{subscribers} waiting subscribers"
    rows = [
        _row(rounds, f"to {crowd}", "ours", 0, Goal(1.3, at_least=False)),
        _row(rounds, f"to {crowd}, the writer's CPU", "ours", 1, None),
        _row(rounds, f"least: to {subscribers} that then read a byte", "least", 0, None),
    ]
    if program is not None:
        rows += [
            _row(rounds, f"to {crowd} / the least in C", "ours", 0, None, "least in C"),
            _row(rounds, "least / the least in C", "least", 0, None, "least in C"),
            _row(rounds, f"{subscribers} `sem_post` / in C", "raw", 0, None, "raw in C"),
            _row(rounds, "the same, the poster's CPU", "raw", 1, None, "raw in C"),
        ]
    return rows


def _row(
    rounds: list[dict[str, tuple[float, float]]],
    case: str,
    kind: str,
    which: int,
    goal: Goal | None,
    beside: str = "raw",
) -> Row:
    return Row.of_rounds(
        section="publish",
        case=case,
        unit="ms",
        ours=[each[kind][which] / 1e6 for each in rounds],
        raw=[each[beside][which] / 1e6 for each in rounds],
        goal=goal,
    )


def _ours(crew: Crew, options: Options, names: list[str], samples: int) -> Times:
    path = options.folder / "crowd"
    name = f"bench-{os.getpid()}"
    share = len(names) // _PROCESSES
    follow = partial(follow_all, name, share)
    publish = partial(publish_to_all, str(path), name, share * _PROCESSES, samples)
    taken, *_ = crew.run([publish, *[follow] * _PROCESSES])
    path.unlink()
    return taken


def _raw(
    crew: Crew, options: Options, names: list[str], samples: int, *, reading: bool = False
) -> Times:
    path = options.folder / "counts"
    path.write_bytes(bytes(8 * len(names)))
    post = partial(post_all, str(path), names, samples)
    waits = [
        partial(wait_for_all, str(path), names, index, samples, reading)
        for index in range(_PROCESSES)
    ]
    taken, *_ = crew.run([post, *waits])
    path.unlink()
    return taken


def _in_c(
    program: in_c.InC, _crew: Crew, _options: Options, names: list[str], samples: int, *,
    reading: bool,
) -> Times:  # fmt: skip
    return program.crowd(len(names), samples, reading=reading)


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def publish_to_all(path: str, name: str, readers: int, samples: int, gate: Gate) -> Times:
    """The writer: the times of each publish. The first, which meets everybody, is not told."""
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
            began, cpu = time.monotonic_ns(), time.thread_time_ns()
            streamer.append(b"x")
            taken.append((time.monotonic_ns() - began, time.thread_time_ns() - cpu))
        streamer.commit()
    return taken[1:]


def follow_all(name: str, count: int, gate: Gate) -> Times:
    """A process of `count` readers, each in a thread of its own."""
    _allow_descriptors(4096)

    def follow(copier: InFlightCopier) -> None:
        with copier:
            buffer = bytearray(64)
            while copier.readinto1(buffer):
                pass

    copiers = [InFlightCopier.attach(name) for _ in range(count)]
    threads = [threading.Thread(target=follow, args=(each,), daemon=True) for each in copiers]
    for thread in threads:
        thread.start()
    gate()
    for thread in threads:
        thread.join()
    return []


def post_all(path: str, names: list[str], samples: int, gate: Gate) -> Times:
    """The poster: the times of each loop, but the first."""
    counts = shared_words(path)
    semaphores = [posix_ipc.Semaphore(each) for each in names]
    posts = [each.release for each in semaphores]
    taken = []
    gate()
    for number in range(1 + samples):
        while min(counts) < number:
            time.sleep(0.005)
        time.sleep(_SETTLE)
        began, cpu = time.monotonic_ns(), time.thread_time_ns()
        for post in posts:
            post()
        taken.append((time.monotonic_ns() - began, time.thread_time_ns() - cpu))
    for semaphore in semaphores:
        semaphore.close()
    return taken[1:]


def wait_for_all(
    path: str, names: list[str], member: int, samples: int, reading: bool, gate: Gate
) -> Times:
    """A process of waiters: every 8th semaphore, so that the loop goes round the processes."""
    counts = shared_words(path)
    fd = os.open(path, os.O_RDONLY)

    def follow(index: int) -> None:
        semaphore = posix_ipc.Semaphore(names[index])
        buffers = [bytearray(1)]
        for number in range(1 + samples):
            semaphore.acquire()
            if reading:
                os.preadv(fd, buffers, 0)
            counts[index] = number + 1
        semaphore.close()

    mine = range(member, len(names), _PROCESSES)
    threads = [threading.Thread(target=follow, args=(index,), daemon=True) for index in mine]
    for thread in threads:
        thread.start()
    gate()
    for thread in threads:
        thread.join()
    os.close(fd)
    return []
