"""What interpreters do in the tests of streams: each function runs in a process of its own."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import resource
import time
from collections.abc import Callable, Iterator

from shmstream import BlobStreamer, InFlightCopier, ShmstreamError, StreamBroken
from shmstream.stream import waiter
from shmstream.stream.doorbell import Doorbell
from tests.support import faults
from tests.support.interpreters import Link


def content(seed: int, size: int) -> bytes:
    """`size` bytes that are the same in every process."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(link: Link, path: str, options: dict[str, object], point: str = "", nth: int = 1) -> None:
    """A writer that does what it hears, until it hears `close`.

    It hears ["append", seed, size], ["commit"], ["abort", reason], ["close"] or ["exit"], and says
    the name of the order once it has obeyed. With a point it dies there.
    """
    if point:
        faults.WRITER_POINTS[point](nth)
    streamer = BlobStreamer.create(path, **options)  # type: ignore[arg-type]
    link.say(streamer.name)
    while True:
        order, *arguments = link.hear()
        if order == "append":
            streamer.append(content(*arguments))
        elif order == "append_hex":
            streamer.append(bytes.fromhex(*arguments))
        elif order == "commit":
            try:
                streamer.commit()
            except ShmstreamError as error:
                order = type(error).__name__
        elif order == "abort":
            streamer.abort(*arguments)
        elif order == "subscribers":
            link.say([each.identity.pid for each in streamer.statistics().subscribers])
            continue
        elif order == "close":
            streamer.close()
        elif order == "exit":  # without closing
            link.say("exit")
            return
        link.say(order)
        if order == "close":
            return


def read(link: Link, name: str, options: dict[str, object], point: str = "", nth: int = 1) -> None:
    """A reader that reads to the end. It says when it is attached, and then the outcome."""
    if point:
        faults.READER_POINTS[point](nth)
    link.say("starting")
    read_bytes = hashlib.sha256()
    position = 0
    waits = note_waits()
    try:
        with InFlightCopier.attach(name, **options) as copier:  # type: ignore[arg-type]
            link.say("attached")
            for data in copier:
                read_bytes.update(data)
                position += len(data)
        outcome: dict[str, object] = {"error": None}
    except StreamBroken as error:
        outcome = {"error": type(error).__name__, "offset": error.offset, "text": str(error)}
    except ShmstreamError as error:
        outcome = {"error": type(error).__name__, "text": str(error)}
    outcome |= {
        "bytes": position,
        "sha256": read_bytes.hexdigest(),
        "longest_wait": max(waits, default=0.0),
    }
    link.say(outcome)


def note_waits() -> list[float]:
    """For how long readers of this process wait for a ring at most, wait by wait, in seconds."""
    wait = Doorbell.wait
    waits: list[float] = []

    def noted(self: Doorbell, seconds: float) -> int:
        waits.append(seconds)
        return wait(self, seconds)

    Doorbell.wait = noted  # type: ignore[method-assign]
    return waits


def read_steps(link: Link, name: str, options: dict[str, object]) -> None:
    """A reader that does what it hears: read1, read n, seek n, leak, close; says the result."""
    copier = InFlightCopier.attach(name, **options)  # type: ignore[arg-type]
    link.say("attached")
    while True:
        order, *arguments = link.hear()
        if order == "leak":  # leave the interpreter without closing
            globals()["leaked"] = copier
            link.say("leak")
            return
        if order == "close":
            copier.close()
            link.say("close")
            return
        steps: dict[str, Callable[..., object]] = {
            "read1": lambda: copier.read1().hex(),
            "read": lambda count: copier.read(count).hex(),
            "seek": copier.seek,
        }
        try:
            link.say(steps[order](*arguments))
        except StreamBroken as error:
            link.say(
                {"error": type(error).__name__, "offset": error.offset, "at": time.monotonic()}
            )


def read_steps_when_rung(link: Link, name: str) -> None:
    """As `read_steps`, and it never looks without a ring."""
    waiter._SLICE = 3600.0
    read_steps(link, name, {})


def crowd(link: Link, name: str, count: int) -> None:
    """Many subscribers in one process, killed or closed together."""
    copiers = [InFlightCopier.attach(name) for _ in range(count)]
    link.say("attached")
    link.hear()
    for copier in copiers:
        copier.close()
    link.say("closed")


def pieces(seed: int, size: int) -> Iterator[bytes]:
    """`content(seed, size)` in pieces of random length."""
    chance = random.Random(seed + 1)
    data = content(seed, size)
    start = 0
    while start < size:
        length = chance.choice((1, 100, 5_000, 70_000, 300_000))
        yield data[start : start + length]
        start += length


def forking_writer(link: Link, path: str) -> None:
    """A writer that forks a child; the child outlives it."""
    streamer = BlobStreamer.create(path)
    streamer.append(b"some bytes")
    child = os.fork()
    if child == 0:
        link.say({"name": streamer.name, "child": os.getpid()})
        try:
            streamer.append(b"not mine")
        except ShmstreamError as error:
            link.say(type(error).__name__)
        link.hear()
        os._exit(0)
    link.hear()


def read_as_user(link: Link, user: int, name: str) -> None:
    """A reader that runs as another user."""
    os.setuid(user)
    read_once(link, name)


def read_once(link: Link, name: str) -> None:
    """Attach, read everything, and say the outcome."""
    try:
        with InFlightCopier.attach(name, timeout=0.1) as copier:
            link.say({"error": None, "sha256": sha256(copier.read())})
    except ShmstreamError as error:
        link.say({"error": type(error).__name__, "text": str(error)})


def _ours() -> list[str]:
    return sorted(entry for entry in os.listdir("/dev/shm") if "shm" in entry)


def create_once(link: Link, path: str) -> None:
    """Try to create a stream; say the outcome, and what is left in shared memory."""
    try:
        BlobStreamer.create(path)
    except ShmstreamError as error:
        link.say({"error": type(error).__name__, "text": str(error), "left": _ours()})


def attach_without_room(link: Link, path: str) -> None:
    """Create a stream, try to attach where /dev/shm has no room for a doorbell, and write on."""
    with BlobStreamer.create(path, max_subscribers=1) as streamer:
        try:
            InFlightCopier.attach(streamer.name)
        except ShmstreamError as error:
            bells = [entry for entry in _ours() if entry.startswith("sem.")]
            link.say({"error": type(error).__name__, "text": str(error), "doorbells": bells})
        streamer.transfer([b"data"])
    link.say("the writer went on")


def write_beyond_the_file_size_limit(link: Link, path: str) -> None:
    """Write more than the limit on the size of a file allows."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        with BlobStreamer.create(path) as streamer:
            streamer.transfer([bytes(60_000), bytes(60_000)])
    except ShmstreamError as error:
        link.say(type(error).__name__)


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def run_short_of_descriptors(link: Link, what: str, path: str, name: str) -> None:
    """Try again and again, each time with room for one more descriptor, until it works."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with BlobStreamer.create(path + ".warm"), InFlightCopier.attach(name):
        pass  # imports and caches open files of their own, once
    for room in range(30):
        before, shared_before = _descriptors(), _ours()
        highest = max(int(number) for number in before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + room, hard))
        outcome: dict[str, object] = {"error": None, "room": room}
        try:
            if what == "create":
                BlobStreamer.create(path).close()
            else:
                InFlightCopier.attach(name).close()
        except ShmstreamError as error:
            outcome |= {"error": type(error).__name__, "text": str(error)}
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        gc.collect()
        leaked = sorted(_descriptors() ^ before) + sorted(set(_ours()) ^ set(shared_before))
        link.say(
            outcome
            | {"leaked": leaked + [p for p in (path + ".shmstream-partial",) if os.path.exists(p)]}
        )
        if outcome["error"] is None:
            return


def write_short_of_descriptors(link: Link, path: str) -> None:
    """A writer that has no descriptor left to open a doorbell, from a moment that it hears."""
    with BlobStreamer.create(path, publish_interval=0) as streamer:
        link.say(streamer.name)
        while (order := link.hear()) != "end":
            if order == "append":
                streamer.append(b"x")
            else:
                used = len(_descriptors())
                hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                assert used > 3
            link.say(order)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        streamer.commit()


def stress_writer(link: Link) -> None:
    """Writes blob after blob: hears path, name and seed, says the SHA-256, streams, waits."""
    while True:
        path, name, seed = link.hear()
        chance = random.Random(seed)
        size = chance.choice((0, 1, 100_000, 3_000_000, 10_000_000))
        digest = sha256(content(seed, size))
        with BlobStreamer.create(
            path,
            name=name,
            size=chance.choice((None, size)),
            digest=chance.choice((None, f"sha256:{digest}")),
            chunk_size=chance.choice((1000, 65536)),
            publish_interval=chance.choice((0, 0.001, 0.02)),
            publish_bytes=chance.choice((0, 65536, 1 << 20)),
        ) as streamer:
            link.say(digest)
            streamer.transfer(pieces(seed, size))
            link.hear()
        link.say("closed")


def stress_reader(link: Link) -> None:
    """Reads blob after blob in random ways, and notes every figure that shrinks."""
    while True:
        name, seed = link.hear()
        chance = random.Random(seed)
        got = hashlib.sha256()
        seen = (0, 0, 0, 0)
        shrunk: list[object] = []
        error = None
        try:
            with InFlightCopier.attach(name) as copier:
                data = b"."
                while data:
                    data = (copier.read1, copier.read)[chance.randrange(2)](
                        chance.choice((1, 5_000, 200_000))
                    )
                    got.update(data)
                    # in this order: each was stored after the one that is loaded after it
                    chunks, published, state = copier.chunk_count, copier.published, copier.state
                    now = (chunks, published, int(state), copier.tell())
                    if any(new < old for new, old in zip(now, seen, strict=True)):
                        shrunk.append([seen, now])
                    seen = now
        except ShmstreamError as failure:
            error = type(failure).__name__
        link.say({"sha256": got.hexdigest(), "shrunk": shrunk, "error": error})
