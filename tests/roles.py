"""What interpreters do in the tests: each function runs in a process of its own."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator

from shmstream import BlobStreamer, InFlightCopier, ShmstreamError, StreamBroken
from tests import faults
from tests.interpreters import Link


def content(seed: int, size: int) -> bytes:
    """The same bytes in every process."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(link: Link, path: str, options: dict[str, object], point: str = "", nth: int = 1) -> None:
    """A writer on a leash: does what it hears, until it hears `close`.

    ["append", seed, size], ["commit"], ["abort", reason], ["close"], ["exit"]; answers each with
    its name. With a point it dies there.
    """
    if point:
        faults.WRITER_POINTS[point](nth)
    streamer = BlobStreamer.create(path, **options)  # type: ignore[arg-type]
    link.say(streamer.name)
    while True:
        order, *arguments = link.hear()
        if order == "append":
            streamer.append(content(*arguments))
        elif order == "commit":
            streamer.commit()
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


def read(
    link: Link, name: str, options: dict[str, object], point: str = "", nth: int = 1
) -> None:
    """A reader that reads to the end; says when it is attached, then what came of it."""
    if point:
        faults.READER_POINTS[point](nth)
    link.say("starting")
    read_bytes = hashlib.sha256()
    position = 0
    began = time.monotonic()
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
        "seconds": time.monotonic() - began,
        "ended": time.monotonic(),
    }
    link.say(outcome)


def read_steps(link: Link, name: str, options: dict[str, object]) -> None:
    """A reader on a leash: ["read1"], ["read", n], ["seek", n], ["leak"]; says what came of it."""
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
            "read_at": lambda count: (copier.read(count).hex(), time.monotonic()),
            "seek": copier.seek,
        }
        try:
            link.say(steps[order](*arguments))
        except StreamBroken as error:
            link.say({"error": type(error).__name__, "offset": error.offset, "at": time.monotonic()})


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
    """A writer that forks a child which outlives it."""
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
    """A reader of another user."""
    os.setuid(user)
    read_once(link, name)


def read_once(link: Link, name: str) -> None:
    """Attach and read all; say what came of it."""
    try:
        with InFlightCopier.attach(name, timeout=0.1) as copier:
            link.say({"error": None, "sha256": sha256(copier.read())})
    except ShmstreamError as error:
        link.say({"error": type(error).__name__, "text": str(error)})
