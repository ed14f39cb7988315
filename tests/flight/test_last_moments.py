"""A leader ends in the middle of its last words: nothing that was read is asked for again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shmstream import Description, Feed, ShmstreamError, Store, StreamClosed
from shmstream.flight import leader
from shmstream.storage import journal
from shmstream.stream.partial import partial_path
from shmstream.stream.resumable_writer import ResumableStreamer
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

    def go_on(self) -> None:
        self._goes_on.set()

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


def ends_before_it_reads(link: Link, folder: str) -> None:
    """All is closed before the thread that leads has read what an earlier flight kept."""
    leads, closed, begin = threading.Event(), threading.Event(), leader.Leader._begin
    told: list[str] = []

    def late(self: leader.Leader) -> Any:
        leads.set()
        closed.wait(PATIENCE)
        return begin(self)

    leader.Leader._begin = late  # type: ignore[method-assign]
    store = Store(folder, durable=False, on_event=lambda event: told.append(event.kind.name))
    place = store._layout.place("name")
    store._layout.make_shelf(place)
    fd = os.open(place.partial, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, DATA[:HALF])
    journal.Journal(place.journal, "sha256").begin(Description(SIZE, "v"), HALF, fd)
    os.close(fd)
    store.open("name", Halting())
    leads.wait(PATIENCE)  # the thread has its name by then
    [leading] = [each for each in threading.enumerate() if each.name == "shmstream-flight"]
    close_all()
    closed.set()
    leading.join(PATIENCE)
    link.say(told)
    link.hear()


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


def test_a_leader_ends_before_it_reads_what_was_kept(start: Start, tmp_path: Path) -> None:
    """Its descriptor of the partial file is closed by then."""
    ending = start(ends_before_it_reads, str(tmp_path))
    assert ending.hear() == ["LED", "HANDED_OVER"]
    ending.kill()
    assert goes_on(str(tmp_path)) == [HALF]


def test_a_streamer_that_is_closed_gives_no_descriptor(tmp_path: Path) -> None:
    """The kernel gives the number of a closed descriptor to the next file that is opened."""
    streamer = ResumableStreamer.create(tmp_path / "blob", name="closed")
    streamer.append(b"bytes")
    before = streamer.descriptor
    streamer.close()
    (tmp_path / "other").write_bytes(b"other")
    fd = os.open(tmp_path / "other", os.O_RDONLY)
    try:
        assert fd <= before
        with pytest.raises(StreamClosed), streamer.reading():
            pass
        with pytest.raises(StreamClosed):
            _ = streamer.identity
        assert streamer.descriptor < 0
        os.unlink(partial_path(streamer.path))
    finally:
        os.close(fd)
