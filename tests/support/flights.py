"""What interpreters do in the tests of stores and flights, and where they are killed.

As in `roles`, each role runs in a process of its own. A *taker* opens the blobs of a store that the
test names, one after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmstream import Retries, ShmstreamError, Store
from shmstream.flight import blob as flight_blob
from shmstream.flight import flight
from shmstream.sources import download
from shmstream.storage import journal
from shmstream.stream import claims, digest, partial, resumable_writer, waiter
from tests.support import faults
from tests.support.interpreters import PATIENCE, Link

HASTY = Retries(first_pause=0.01, longest_pause=0.05)
"""As many tries as by default, with short pauses."""

LEADER_POINTS: dict[str, Callable[[int], None]] = {
    "before the second look": faults.after(resumable_writer.ResumableStreamer, "create"),
    "before the source is asked": faults.before(download.Download, "open"),
    "before anything is published": faults.before(resumable_writer.ResumableStreamer, "resume"),
    "before the journal": faults.before(journal.Journal, "begin"),
    "after the kernel has moved some": faults.after(partial.PartialFile, "receive"),
    "after that is counted": faults.after(resumable_writer.ResumableStreamer, "receive"),
    "before the digest": faults.before(digest.RunningDigest, "finish"),
    "before the commit": faults.before(resumable_writer.ResumableStreamer, "commit"),
    "after the commit": faults.after(resumable_writer.ResumableStreamer, "commit"),
    "before the new flight": faults.before(flight.Flight, "_begin"),
    "after the takeover": faults.after(resumable_writer.ResumableStreamer, "succeed"),
    **{
        point: faults.WRITER_POINTS[point]
        for point in (
            "after the segment is locked",
            "after the partial file is made",
            "before the magic",
            "after the magic",
            "before published",
            "after published",
            "before the post",
            "before the rename",
            "after the rename",
            "before COMMITTED",
            "after COMMITTED",
            "while it closes",
        )
    },
}


def make_store(folder: str, options: dict[str, Any]) -> Store:
    """A store whose retries keep no test waiting."""
    return Store(folder, **{"retries": HASTY, "durable": False, **options})


def take(link: Link, folder: str, options: dict[str, Any], point: str = "", nth: int = 1) -> None:
    """A taker: it says its pid. Then it opens the blob of each [key, source, hurry] that it hears,
    says its role as soon as that is known, and says the outcome at the end.

    It begins at a random moment in the next `hurry` seconds. With a point it dies there.
    """
    store = make_store(folder, options)
    if point:
        LEADER_POINTS[point](nth)
    link.say(os.getpid())
    for key, source, hurry in link.hear_all():
        time.sleep(random.random() * hurry)  # a random start, not a synchronisation
        link.say(read_all(link, store, key, source))


def _be_patient() -> None:
    """Wait for another process to take over for as long as a busy machine needs."""
    for module in (flight, flight_blob):
        vars(module)["SUCCESSION"] = PATIENCE


def take_patiently(link: Link, folder: str, options: dict[str, Any]) -> None:
    """A taker that gives another process all the time it needs to take over."""
    _be_patient()
    take(link, folder, options)


def take_async_patiently(link: Link, folder: str, options: dict[str, Any]) -> None:
    """As `take_patiently`, in an event loop."""
    _be_patient()
    take_async(link, folder, options)


def take_with_little_hope(link: Link, folder: str) -> None:
    """A taker that waits a second, not ten, for a live process to take over."""
    flight._HOPE = 1.0
    take(link, folder, {})


def take_without_looks(link: Link, folder: str) -> None:
    """A taker that never looks whether its leader lives: the kernel has to tell it."""
    waiter._SLICE = 3600.0
    take(link, folder, {})


def read_all(link: Link, store: Store, key: str, source: Any) -> dict[str, Any]:
    read = hashlib.sha256()
    position = 0
    longest = 0.0
    last = time.monotonic()
    try:
        with store.open(key, source) as blob:
            link.say({"role": blob.role})
            for data in blob:
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                read.update(data)
                position += len(data)
            role = blob.role
    except ShmstreamError as error:
        return {"error": type(error).__name__, "text": str(error), "bytes": position}
    return {
        "error": None,
        "sha256": read.hexdigest(),
        "bytes": position,
        "role": role,
        "longest": longest,
    }


def fetch(link: Link, folder: str, options: dict[str, Any]) -> None:
    """It says its pid; then it fetches each [key, source] that it hears, and says the outcome."""
    _be_patient()
    store = make_store(folder, options)
    link.say(os.getpid())
    for key, source in link.hear_all():
        try:
            path = store.fetch(key, source)
        except ShmstreamError as error:
            link.say({"error": type(error).__name__, "text": str(error)})
        else:
            link.say({"error": None, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()})


def take_async(link: Link, folder: str, options: dict[str, Any]) -> None:
    """As `take`, in an event loop."""
    store = make_store(folder, options)
    link.say(os.getpid())
    for key, source, _ in link.hear_all():
        link.say(asyncio.run(_read_all(link, store, key, source)))


async def _read_all(link: Link, store: Store, key: str, source: Any) -> dict[str, Any]:
    read = hashlib.sha256()
    try:
        async with store.aopen(key, source) as blob:
            link.say({"role": blob.role})
            async for data in blob:
                read.update(data)
    except ShmstreamError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": None, "sha256": read.hexdigest()}


def read_in_steps(
    link: Link,
    folder: str,
    key: str,
    source: Any,
    stall_timeout: float | None,
    wait_for: float = 0.0,
) -> None:
    """Opens a blob, and says its role. Then it reads as many bytes as it hears, again and again.

    For a negative number it reads the rest, and goes. An error ends nothing: it can be told to read
    again, or with None to leave. With each answer it says its role.
    """
    logging.basicConfig(level=logging.INFO)
    told: list[int] = []
    store = make_store(folder, {})
    tell = lambda now: told.append(now.published)  # noqa: E731
    options: dict[str, Any] = {"progress": tell, "stall_timeout": stall_timeout}
    if wait_for:
        link.say("waits")
    with store.open(key, source, wait_for=wait_for, **options) as blob:
        link.say({"role": blob.role, "pid": os.getpid()})
        count = 0
        while count >= 0:
            if (count := link.hear()) is None:
                return
            try:
                data = blob.read(count)
            except ShmstreamError as error:
                link.say({"error": type(error).__name__, "text": str(error), "at": blob.tell()})
                count = 0
            else:
                read = {"sha256": hashlib.sha256(data).hexdigest(), "role": blob.role}
                link.say(read | {"told": told[-1], "size": blob.size})


def read_in_steps_patiently(
    link: Link, folder: str, key: str, source: Any, stall_timeout: float | None
) -> None:
    """As `read_in_steps`, and gives another process all the time it needs to take over."""
    _be_patient()
    read_in_steps(link, folder, key, source, stall_timeout)


def read_in_asyncio(link: Link, folder: str, key: str, source: Any) -> None:
    """Three tasks read a blob; says a dictionary of what the first task has read, then of all."""

    async def read() -> str:
        async with make_store(folder, {}).aopen(key, source) as blob:
            got = await blob.read(1000)
            link.say({"first": hashlib.sha256(got).hexdigest(), "role": blob.role})
            return hashlib.sha256(got + await blob.read()).hexdigest()

    async def main() -> tuple[str, ...]:
        return await asyncio.gather(read(), read(), read())

    link.say(asyncio.run(main()))


def open_and_leave(link: Link, folder: str, key: str, source: str, how: str) -> None:
    """Opens a blob, and ends as `how` tells while it leads."""
    if how == "handled SIGTERM":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    store = make_store(folder, {})
    blob = store.open(key, source)
    blob.read(1)
    link.say(blob.role)
    if how == "exit":
        link.hear()
        return
    while True:  # a signal that comes just before a wait does not end the wait
        time.sleep(0.05)


def fetch_in_a_fork(link: Link, folder: str, key: str, source: str) -> None:
    """Forks while it leads. The child opens the blob, too, and neither disturbs the other."""
    store = make_store(folder, {})
    with store.open(key, source) as blob:
        first = blob.read(1)
        child = os.fork()
        if child == 0:
            try:
                with store.open(key, source) as mine:
                    good = mine.role == "follows" and mine.read(1) == first
            except BaseException:
                logging.exception("in the child")
                good = False
            os._exit(0 if good else 1)
        status = os.waitpid(child, 0)[1]
        link.say(status)
        link.say(hashlib.sha256(first + blob.read()).hexdigest())


def lead_many(link: Link, folder: str, url: str, count: int) -> None:
    """Leads `count` flights of a silent source, and ends when it hears anything."""
    store = make_store(folder, {})
    blobs = [store.open(f"key {number}", url) for number in range(count)]
    for blob in blobs:
        blob.read(1000)
    link.say(blobs[-1].role)
    link.hear()


def unpickle(link: Link) -> None:
    """Unpickles what it hears as hex digits, and reads it to its end."""
    try:
        with pickle.loads(bytes.fromhex(link.hear())) as file:
            link.say({"position": file.tell(), "role": getattr(file, "role", None)})
            link.say({"sha256": hashlib.sha256(file.read()).hexdigest()})
    except ShmstreamError as error:
        link.say({"error": type(error).__name__, "text": str(error)})


def produce(link: Link, folder: str) -> None:
    """Creates a blob, and does what it hears: [order, argument]. Says the outcome of each order.

    The `with` block is left at `leave`, and by an exception at `fail`.
    """
    store = make_store(folder, {})
    _, key, options = link.hear()
    try:
        with store.create(key, **options) as blob:
            link.say({"path": blob.path, "pid": os.getpid()})
            while (heard := link.hear())[0] != "leave":
                if heard[0] == "write":
                    link.say(blob.write(bytes.fromhex(heard[1])))
                    blob.flush()
                elif heard[0] == "fail":
                    raise ValueError(heard[1])
        link.say({"error": None, "digest": blob.digest})
    except (ShmstreamError, ValueError) as error:
        link.say({"error": type(error).__name__, "text": str(error)})


def take_and_note_listings(link: Link, folder: str, url: str) -> None:
    """A taker that says beside each outcome which folders were listed since its first flight, of
    `url`. In that flight it sweeps, and imports what it needs; after a minute it would sweep again.
    """
    listed: list[str] = []
    is_noting = False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        is_listing = event in ("os.listdir", "os.scandir")
        if is_noting and is_listing and arguments[0] not in sys.path_importer_cache:
            listed.append(str(arguments[0]))

    sys.addaudithook(note)
    store = make_store(folder, {})
    store.fetch(str(os.getpid()), url)
    claims._SWEEP_INTERVAL = 1e9
    link.say(os.getpid())
    for key, source in link.hear_all():
        is_noting = True
        outcome = read_all(link, store, key, source)
        link.say({**outcome, "listed": listed})
    is_noting = False
