"""A file cannot be opened now: descriptors or memory are short, or the disk fails.

That is no answer to the question whether the file is there. So the error is reported as what it is,
and nothing that was kept is thrown away.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shmstream import OutOfResources, Store, StoreUnusable, WriterDied
from shmstream.flight.file_follower import FileFollower
from shmstream.sources.base import Description
from shmstream.storage import folder as folders
from shmstream.storage import journal, record
from shmstream.storage.journal import Journal
from shmstream.storage.layout import Layout
from shmstream.stream import claims, segment
from tests.flight import test_last_moments
from tests.flight.test_last_moments import DATA, HALF, SIZE, Halting
from tests.support.interpreters import Interpreter
from tests.support.stores import digest

ERRORS = {
    errno.EMFILE: OutOfResources,
    errno.ENFILE: OutOfResources,
    errno.ENOMEM: OutOfResources,
    errno.EIO: StoreUnusable,
}
every_error = pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)


@contextmanager
def failing(owner: Any, name: str, number: int, path: str) -> Iterator[list[str]]:
    """Whatever opens a file by `owner.name` gets this error at `path`; each such try."""
    tries: list[str] = []
    opens = getattr(owner, name)

    def fail(at: str, *others: Any) -> Any:
        if at != path:
            return opens(at, *others)
        tries.append(at)
        raise OSError(number, os.strerror(number), at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield tries


def keep_half(store: Store, key: str) -> Any:
    """The place of a blob of which half is kept, with its journal, older than an hour."""
    place = store._layout.place(key)
    store._layout.make_shelf(place)
    fd = os.open(place.partial, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, DATA[:HALF])
    os.utime(fd, (time.time() - 3600,) * 2)
    Journal(place.journal, place.algorithm).begin(Description(SIZE, "v"), HALF, fd)
    os.close(fd)
    return place


@every_error
@pytest.mark.parametrize("key", ["name", digest(91, SIZE)])
def test_what_was_kept_is_not_begun_anew(number: int, key: str, store: Store) -> None:
    place, source = keep_half(store, key), Halting()
    with failing(journal, "read_file", number, place.journal) as tries:
        with pytest.raises(ERRORS[number], match=os.strerror(number)):
            store.fetch(key, source)
        assert tries
    assert source.asked == []
    assert Path(store.fetch(key, source)).read_bytes() == DATA
    assert source.asked == [HALF]


@every_error
def test_what_was_kept_is_not_collected(number: int, store: Store) -> None:
    place = keep_half(store, "name")
    with failing(journal, "read_file", number, place.journal) as tries:
        if number == errno.EIO:
            assert store.gc() == []
            assert {each.kind for each in store.check()} == {"damaged"}
            assert all(os.strerror(number) in each.detail for each in store.check())
        else:
            with pytest.raises(OutOfResources):
                store.gc()
            with pytest.raises(OutOfResources):
                store.check()
        assert tries
    assert os.path.exists(place.partial)
    assert store.gc(partial_age=0)


@every_error
def test_a_leader_is_not_replaced_by_a_process_that_lacks_something(
    number: int, start: Callable[..., Interpreter], tmp_path: Path
) -> None:
    """The follower cannot lead now, and says so; it gives the lead back, and can later."""
    first = start(test_last_moments.notes_nothing, str(tmp_path))
    assert first.hear() == HALF
    store, source = test_last_moments.open_store(str(tmp_path)), Halting()
    with store.open("name", source) as blob:
        assert blob.read(HALF) == DATA[:HALF]
        place = store._layout.place("name")
        with failing(journal, "read_file", number, place.journal):
            first.kill()
            with pytest.raises(ERRORS[number], match=os.strerror(number)):
                blob.read(1)
        assert [each.leader for each in store.flights()] == [None]
        assert blob.read() == DATA[HALF:]
        blob.wait()
    assert source.asked == [HALF]


@every_error
def test_a_stream_stays_that_alone_can_vouch(
    number: int, start: Callable[..., Interpreter], tmp_path: Path
) -> None:
    """A leader was killed before it had a journal, and nobody is left to go on."""
    first = start(test_last_moments.notes_nothing, str(tmp_path))
    assert first.hear() == HALF
    first.kill()
    store = test_last_moments.open_store(str(tmp_path))
    place = store._layout.place("name")
    with failing(claims, "KernelLock", number, place.partial) as tries:
        claims.reap_unread(place.stream)
        assert tries
    if number == errno.EIO:  # that may last for ever, and dead streams must not
        assert not store.flights()
        assert test_last_moments.goes_on(str(tmp_path)) == [0]
        return
    with failing(journal, "write_file", number, place.journal) as tries:
        claims.reap_unread(place.stream)
        assert tries
    assert store.flights()
    claims.reap_unread(place.stream)
    assert not store.flights()
    assert test_last_moments.goes_on(str(tmp_path)) == [HALF]


@every_error
def test_a_blob_is_not_taken_for_one_without_a_digest(number: int, store: Store) -> None:
    path = Path(store.fetch("name", Halting()))
    path.write_bytes(bytes(SIZE))
    place = store._layout.place("name")
    with (
        failing(record, "read_with_facts", number, place.record) as tries,
        pytest.raises(ERRORS[number], match=os.strerror(number)),
    ):
        Store(store.folder, verify=True).open("name", Halting())
    assert tries
    store.remove("name")


def test_a_flight_that_cannot_be_looked_at_is_not_absent(store: Store) -> None:
    source = Halting(halts=True)
    with store.open("name", source) as blob:
        assert blob.read(1) == DATA[:1]
        with failing(segment.Segment, "attach", errno.EMFILE, blob._flight.place.stream):
            with pytest.raises(OutOfResources):
                store.flights()
            with pytest.raises(OutOfResources):
                store.cancel("name")
        assert store.flights()
        source.go_on()
        blob.wait()


@pytest.mark.parametrize("what", ["is_known_right", "metadata"])
def test_a_blob_is_closed_of_which_nothing_can_be_known(
    what: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server that lacks descriptors for a moment lacks them for ever."""

    def fail(*_: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def open_it() -> None:
        with pytest.raises(OutOfResources):
            async with store.aopen("name"):
                pass

    store.fetch("name", Halting())
    monkeypatch.setattr(Layout, what, fail)
    asyncio.run(open_it())
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        asyncio.run(open_it())
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_unknown_mounts_are_no_unmounted_store() -> None:
    def fail(_: object) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="Too many open files"):
            folders._mount_points()
    assert "/" in folders._mount_points()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EROFS, errno.ENOTCONN])
def test_a_follower_of_a_file_for_which_nobody_can_vouch(
    number: int, start: Callable[..., Interpreter], tmp_path: Path
) -> None:
    """As on a mount that is read-only. Only what this process lacks is asked for again."""
    first = start(test_last_moments.notes_nothing, str(tmp_path))
    assert first.hear() == HALF
    store = test_last_moments.open_store(str(tmp_path))
    place = store._layout.place("name")
    follower = FileFollower.follow(place, 60.0)
    assert follower is not None
    with failing(journal, "KernelLock", number, place.partial):
        first.kill()
        with pytest.raises(OutOfResources if number == errno.EMFILE else WriterDied):
            follower.wait(SIZE)
    follower.close()
    store.gc(partial_age=0)
