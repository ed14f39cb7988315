"""How many calls one wake-up of a reader takes: of functions of Python, and of functions in C.

Right after a wake-up the caches are cold, and each call costs a multiple of what it costs in a
loop. The number of calls of a reader does not depend on the machine, nor on what else it does, so a
test has a bound for it (tests/bench).

    a reader    an `InFlightCopier` waits in `readinto1` for 64 bytes of another process; counted
                from the call until it has returned
    asyncio     a task waits in `AsyncBlob.read1` for the same; counted in the thread that watches
                the flight for all tasks, and in the thread of the task, there with what asyncio
                itself calls

The interpreter tells of each call (`sys.setprofile`). It does not tell of a call of a type, or of a
function of ctypes. The writer waits until the reader has the piece before, and a moment longer, so
that each piece wakes a reader that sleeps.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType

from bench.crew import Crew, Gate
from bench.report import CheckFailed, Goal, Options, Row, progress
from shmstream import BlobStreamer, InFlightCopier, Store

_PIECE = 64  # bytes
_PAUSE = 0.005  # s; until a reader that has asked for more sleeps
_KEY = "pieces"


class _Calls:
    """Counts the calls that each thread makes; `note` is for `sys.setprofile`."""

    def __init__(self) -> None:
        self.of: defaultdict[int, int] = defaultdict(int)

    def note(self, _frame: FrameType, event: str, _arg: object) -> None:
        if event in ("call", "c_call"):
            self.of[threading.get_ident()] += 1


def measure(options: Options) -> list[Row]:
    """One row for a reader, and one for each of the two threads of asyncio."""
    progress("calls of one wake-up")
    wakes = 50 if options.quick else 500
    name = f"bench-{os.getpid()}"
    path, folder = str(options.folder / "pieces"), str(options.folder / "store")
    with Crew(2) as crew:
        reading = partial(calls_of_reader, name, wakes)
        _, of_reader = crew.run([partial(publish_pieces, path, name, wakes), reading])
    with Crew(2) as crew:  # whose threads are all new
        taken = options.folder / "taken"
        taken.touch()
        following = partial(calls_of_asyncio, folder, str(taken), wakes)
        _, of_asyncio = crew.run([partial(write_pieces, folder, str(taken), wakes), following])
    bounds = {"a reader": 22, "asyncio, the thread for all tasks": 66}
    return [
        Row(
            section="calls",
            case=f"one wake-up of {who}",
            unit="calls",
            ours=calls,
            goal=Goal(bounds[who], at_least=False, of_ratio=False) if who in bounds else None,
            notes={"wake-ups": wakes},
        )
        for who, calls in (of_reader | of_asyncio).items()
    ]


def publish_pieces(path: str, name: str, wakes: int, gate: Gate) -> dict[str, float]:
    """The writer of a stream; it answers nothing."""
    with BlobStreamer.create(path, name=name, publish_interval=0) as streamer:
        gate()
        for number in range(wakes):
            while streamer.statistics().subscribers[0].position < number * _PIECE:
                time.sleep(_PAUSE)
            time.sleep(_PAUSE)
            streamer.append(bytes(_PIECE))
        gate()
        streamer.commit()
    return {}


def calls_of_reader(name: str, wakes: int, gate: Gate) -> dict[str, float]:
    """The median over all wake-ups of a reader."""
    calls, me = _Calls(), threading.get_ident()
    buffer = bytearray(_PIECE)
    counts = []
    with InFlightCopier.attach(name) as reader:
        gate()
        for _ in range(wakes):
            before = calls.of[me]
            sys.setprofile(calls.note)
            reader.readinto1(buffer)
            sys.setprofile(None)
            counts.append(calls.of[me] - before - 1)  # that of `setprofile`
        if reader.position != wakes * _PIECE:
            raise CheckFailed(f"{reader.position} bytes are not one piece for each read")
        gate()
    return {"a reader": median(counts)}


def write_pieces(folder: str, taken: str, wakes: int, gate: Gate) -> dict[str, float]:
    """The writer of a blob in a store; it answers nothing. `taken` has a byte for each read."""
    with Store(folder, publish_interval=0).create(_KEY) as blob:
        for number in range(wakes + 1):
            if number == 1:
                gate()
            while Path(taken).stat().st_size < number:
                time.sleep(_PAUSE)
            time.sleep(_PAUSE)
            blob.write(bytes(_PIECE))
            blob.flush()
        gate()
    return {}


def calls_of_asyncio(folder: str, taken: str, wakes: int, gate: Gate) -> dict[str, float]:
    """The medians over all wake-ups of a task, and of the thread that watches for it."""
    return asyncio.run(_calls_of_asyncio(folder, taken, wakes, gate))


async def _calls_of_asyncio(folder: str, taken: str, wakes: int, gate: Gate) -> dict[str, float]:
    calls, me = _Calls(), threading.get_ident()
    threading.setprofile(calls.note)  # for threads that begin from now on
    of_task, of_thread = [], []
    async with Store(folder).aopen(_KEY, wait_for=60) as blob:
        with Path(taken).open("ab", buffering=0) as file:
            await blob.read1()
            file.write(b".")
            gate()
            for _ in range(wakes):
                before = dict(calls.of)
                sys.setprofile(calls.note)
                await blob.read1()
                sys.setprofile(None)
                file.write(b".")
                more = {who: count - before.get(who, 0) for who, count in dict(calls.of).items()}
                of_task.append(more.pop(me) - 1)  # that of `setprofile`
                of_thread.append(max(more.values(), default=0))
        threading.setprofile(None)
        if blob.tell() != (wakes + 1) * _PIECE:
            raise CheckFailed(f"{blob.tell()} bytes are not one piece for each read")
        gate()
    if not median(of_thread):
        raise CheckFailed("no thread made a call for each wake-up")
    return {
        "asyncio, the thread for all tasks": median(of_thread),
        "asyncio, a task, with what asyncio calls": median(of_task),
    }
