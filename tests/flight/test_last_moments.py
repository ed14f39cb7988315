"""A leader ends in the middle of its last words: nothing that was read is asked for again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shmstream import Feed, ShmstreamError, Store
from shmstream.flight import leader
from shmstream.storage import journal
from shmstream.system.process import close_all
from tests.support.interpreters import PATIENCE, Interpreter, Link
from tests.support.roles import content

SIZE, HALF = 400_000, 300_000
DATA = content(91, SIZE)
Start = Callable[..., Interpreter]


class Halting:
    """A source that halts after `HALF` bytes, unless it is asked for the rest."""

    name = "a source"

    def __init__(self, *, halts: bool = False) -> None:
        self.asked: list[int] = []
        self._goes_on = threading.Event()
        if not halts:
            self._goes_on.set()

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        self.asked.append(offset)
        return Feed(self._pieces(offset), offset, SIZE, "v")

    def _pieces(self, offset: int) -> Iterator[bytes]:
        if offset < HALF:
            yield DATA[offset:HALF]
            offset = HALF
        self._goes_on.wait(PATIENCE)
        yield DATA[offset:]


def open_store(folder: str) -> Store:
    return Store(folder, durable=False)


def ends_while_it_notes(link: Link, folder: str) -> None:
    """All is closed while the thread that leads writes the first journal."""
    writes, closed, write = threading.Event(), threading.Event(), vars(journal)["write_file"]

    def slow(path: str, data: bytes, *, durable: bool = False) -> None:
        if threading.current_thread() is not threading.main_thread():
            writes.set()
            closed.wait(0.5)  # closing may wait for this
        write(path, data, durable=durable)

    vars(journal)["write_file"] = slow
    blob = open_store(folder).open("name", Halting(halts=True))
    read = len(blob.read(HALF))
    writes.wait(PATIENCE)
    close_all()
    closed.set()
    link.say(read)
    assert link.hear() == "end"
    os._exit(0)


def notes_nothing(link: Link, folder: str) -> None:
    """A leader that is killed before it has a journal."""
    vars(leader)["Journal"].begin = lambda *_: threading.Event().wait()
    blob = open_store(folder).open("name", Halting(halts=True))
    link.say(len(blob.read(HALF)))
    link.hear()


def ends_before_it_begins(link: Link, folder: str) -> None:
    """A successor: all is closed before its thread has done anything."""
    leads, closed, begin = threading.Event(), threading.Event(), leader.Leader._begin

    def late(self: leader.Leader) -> Any:
        leads.set()
        closed.wait(PATIENCE)
        return begin(self)

    leader.Leader._begin = late  # type: ignore[method-assign]
    blob = open_store(folder).open("name", Halting())

    def read() -> None:
        with suppress(ShmstreamError):
            blob.read()

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    link.say("joined")
    leads.wait(PATIENCE)
    close_all()
    closed.set()
    link.say("closed")
    assert link.hear() == "end"
    os._exit(0)


def goes_on(folder: str) -> list[int]:
    """From where the next reader's source is asked."""
    source = Halting()
    with open_store(folder).open("name", source) as blob:
        assert blob.read() == DATA
        blob.wait()
    return source.asked


def test_a_leader_ends_while_it_notes(start: Start, tmp_path: Path) -> None:
    ending = start(ends_while_it_notes, str(tmp_path))
    assert ending.hear() == HALF
    ending.say("end")
    ending.finish()
    assert goes_on(str(tmp_path)) == [HALF]


def test_a_successor_ends_before_it_begins(start: Start, tmp_path: Path) -> None:
    first = start(notes_nothing, str(tmp_path))
    assert first.hear() == HALF
    second = start(ends_before_it_begins, str(tmp_path))
    assert second.hear() == "joined"
    first.kill()
    assert second.hear() == "closed"
    second.say("end")
    second.finish()
    assert goes_on(str(tmp_path)) == [HALF]
