"""What `check` finds: every test breaks one thing for real, and mends it, or has `gc` do so."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmstream import DamagedSegment, Description, Finding, InFlightCopier, Store, StoreUnusable
from shmstream.storage.journal import Journal
from shmstream.storage.layout import KINDS, RECORD, Layout
from shmstream.storage.record import Record
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import State
from shmstream.stream.digest import digest_of
from shmstream.stream.doorbell import Doorbell
from shmstream.stream.listing import listing
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.stream.segment import Segment
from tests.support import roles
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.roles import content
from tests.support.stores import digest

Start = Callable[..., Interpreter]
SIZE = 500_000
CHUNK = 65536
WITHHELD = SIZE // CHUNK * CHUNK


@pytest.fixture
def streamer(store: Store) -> Iterator[ResumableStreamer]:
    """One that has published all but the last chunk of a blob of `store`."""
    place = store._layout.place(digest(1, SIZE))
    with ResumableStreamer.create(
        place.path, name=place.stream, digest=place.digest, size=SIZE, publish_interval=0
    ) as streamer:
        streamer.append(content(1, SIZE))
        assert streamer.published == WITHHELD
        assert store.check() == []
        yield streamer


def only(store: Store) -> Finding:
    [finding] = store.check()
    return finding


@contextmanager
def flapping(store: Callable[[int], None], *values: int) -> Iterator[None]:
    """Stores one value after the other, over and over."""
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            for value in values:
                store(value)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


# Blocks.


def test_published_goes_back(streamer: ResumableStreamer, store: Store) -> None:
    def publish(count: int) -> None:
        streamer._block.published = count

    with flapping(publish, 5 * CHUNK, WITHHELD):
        wait_until(lambda: any("I1: published went back" in each.detail for each in store.check()))
    publish(WITHHELD)


def test_more_is_published_than_there_is(streamer: ResumableStreamer, store: Store) -> None:
    streamer._block.published = SIZE + 1
    found = only(store)
    assert found.kind == "inconsistent"
    assert found.path == segment.path_of(streamer.name)
    assert f"published {SIZE + 1} bytes of {SIZE}" in found.detail
    streamer._block.published = WITHHELD


def test_the_partial_file_is_truncated(streamer: ResumableStreamer, store: Store) -> None:
    partial = streamer.path + ".shmstream-partial"
    os.truncate(partial, 1000)
    assert f"I2: its file has 1000 bytes of {WITHHELD}" in only(store).detail
    Path(partial).write_bytes(content(1, SIZE))


@pytest.mark.parametrize("replaced", [False, True])
def test_the_partial_file_is_another(
    replaced: bool, streamer: ResumableStreamer, store: Store, tmp_path: Path
) -> None:
    partial = Path(streamer.path + ".shmstream-partial")
    kept = partial.rename(tmp_path / "kept")
    if replaced:
        shutil.copy(kept, partial)
    found = only(store)
    assert (found.kind, found.path) == ("inconsistent", streamer.path)
    assert "I2: its partial file was replaced or removed" in found.detail
    kept.rename(partial)


@pytest.mark.parametrize("count", [0, 6, 8, 1 << 40])
def test_chunks_are_miscounted(count: int, streamer: ResumableStreamer, store: Store) -> None:
    streamer._block.chunk_count = count
    assert f"chunk_count is {count}, with {WITHHELD} bytes published" in only(store).detail
    streamer._block.chunk_count = WITHHELD // CHUNK


def test_the_last_chunk_is_published_too_early(streamer: ResumableStreamer, store: Store) -> None:
    streamer._block.published = SIZE
    streamer._block.chunk_count = SIZE // CHUNK + 1
    assert "I5: all of it can be read, and the blob has not its final name" in only(store).detail


@pytest.mark.parametrize("how", ["is missing", "is another file", "has not its final name"])
def test_a_committed_blob_is_not_there(
    how: str, streamer: ResumableStreamer, store: Store, tmp_path: Path
) -> None:
    streamer.commit()
    assert store.check() == []
    path = Path(streamer.path)
    partial = Path(streamer.path + ".shmstream-partial")
    if how == "has not its final name":
        path.rename(partial)
    else:
        path.rename(tmp_path / "kept")
    if how == "is another file":
        shutil.copy(tmp_path / "kept", path)
    found = only(store)
    assert found.kind == "inconsistent"
    assert found.detail.startswith(f"stream {streamer.name}: I5:")
    assert found.detail.endswith(how)
    partial.unlink(missing_ok=True)


def test_an_aborted_stream_does_not_say_why(streamer: ResumableStreamer, store: Store) -> None:
    streamer.abort("for a reason")
    assert store.check() == []
    streamer._block.error = b"{"
    assert "I3: it is aborted, and its error cannot be read" in only(store).detail


def test_published_goes_on_after_the_end(streamer: ResumableStreamer, store: Store) -> None:
    streamer.abort("for a reason")

    def publish(count: int) -> None:
        streamer._block.published = count

    with flapping(publish, WITHHELD - 1, WITHHELD):
        wait_until(lambda: any("I3: published went on" in each.detail for each in store.check()))


def test_a_stream_begins_again_after_the_end(streamer: ResumableStreamer, store: Store) -> None:
    streamer.abort("for a reason")

    def advance(state: int) -> None:
        streamer._block.state = state

    told = "I3: it was ABORTED and is STREAMING"
    with flapping(advance, State.STREAMING, State.ABORTED):
        wait_until(lambda: any(told in each.detail for each in store.check()))


def test_a_writer_that_runs_breaks_nothing(store: Store) -> None:
    """As fast as it can, with whatever it is in the middle of when it is looked at."""
    place = store._layout.place("key")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            with ResumableStreamer.create(
                place.path, name=place.stream, digest="sha256", publish_bytes=0, publish_interval=0
            ) as streamer:
                for _ in range(500):
                    streamer.append(bytes(1000))
                streamer.commit()
            os.unlink(place.path)

    writer = threading.Thread(target=write)
    writer.start()
    found = {each.kind for _ in range(30) for each in store.check()}
    done.set()
    writer.join()
    assert found - {"unrecorded"} == set()


# Slots and doorbells.


@pytest.mark.parametrize("point", ["after the doorbell is made", "before the wait"])
def test_a_reader_is_killed(
    point: str, start: Start, streamer: ResumableStreamer, store: Store
) -> None:
    with InFlightCopier.attach(streamer.name):
        [(_, alive)] = doorbell.names()
        victim = start(roles.read, streamer.name, {}, point)
        victim.wait_killed()
        [bell] = {each for _, each in doorbell.names()} - {alive}
        told = f"a reader of stream {streamer.name} was killed, and left its doorbell"
        assert only(store) == Finding("abandoned", bell, told)
        assert store.gc() == [bell]
        assert store.check() == []
        assert [each for _, each in doorbell.names()] == [alive]


def test_a_reader_loses_its_doorbell(streamer: ResumableStreamer, store: Store) -> None:
    with InFlightCopier.attach(streamer.name) as copier:
        [(_, bell)] = doorbell.names()
        doorbell.unlink(bell)
        finding = only(store)
        assert (finding.kind, finding.path) == ("inconsistent", bell)
        assert store.gc() == []
        streamer.commit()
        assert store.check() == [], "it has ended: its writer is about to remove all doorbells"
        assert copier.read() == content(1, SIZE)


def test_readers_that_come_and_go_have_all_they_need(
    start: Start, streamer: ResumableStreamer, store: Store
) -> None:
    def come_and_go() -> None:
        while not done.is_set():
            InFlightCopier.attach(streamer.name).close()

    done = threading.Event()
    readers = [threading.Thread(target=come_and_go) for _ in range(2)]
    crowd = start(roles.crowd, streamer.name, 20)
    assert crowd.hear() == "attached"
    for reader in readers:
        reader.start()
    for _ in range(30):
        assert store.check() == []
        assert store.gc() == []
    done.set()
    for reader in readers:
        reader.join()
    crowd.say("close")
    assert crowd.hear() == "closed"


def test_a_doorbell_without_a_stream(store: Store) -> None:
    name = doorbell.name_of(5, 0, 1)
    Doorbell(name).close(unlink_name=False)
    assert only(store) == Finding("abandoned", name, "a doorbell, and its stream is gone")
    assert store.gc() == [name]
    assert store.check() == []


def test_a_stream_that_begins_during_the_listing(
    streamer: ResumableStreamer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing has passed the place of its name, and finds the doorbell of its reader."""

    def list_without_the_newcomer() -> list[str]:
        monkeypatch.setattr("shmstream.storage.check.listing", listing)
        return [each for each in listing() if streamer.name not in each]

    with InFlightCopier.attach(streamer.name):
        monkeypatch.setattr("shmstream.storage.check.listing", list_without_the_newcomer)
        assert store.check() == []


# Segments.


def test_a_stream_without_anybody(start: Start, store: Store, tmp_path: Path) -> None:
    """Also one of another folder, for `gc` removes it."""
    writer = start(roles.write, str(tmp_path / "elsewhere"), {"name": "dead"}, "after write")
    assert writer.hear() == "dead"
    writer.say(["append", 1, 1000])
    writer.wait_killed()
    finding = only(store)
    assert (finding.kind, finding.path) == ("abandoned", str(tmp_path / "elsewhere"))
    assert store.gc() == ["dead"]
    assert store.check() == []


def test_a_stream_that_is_half_made(start: Start, store: Store, tmp_path: Path) -> None:
    path = str(tmp_path / "elsewhere")
    start(roles.write, path, {"name": "half"}, "before the magic").wait_killed()
    finding = only(store)
    assert (finding.kind, finding.path) == ("abandoned", segment.path_of("half"))
    assert store.gc() == ["half"]
    assert store.check() == []


def test_shared_memory_that_is_no_stream(store: Store) -> None:
    other = Segment.create("other", 100_000)
    other.reserve()
    other.memory[:8] = b"\1" * 8
    finding = only(store)
    assert (finding.kind, finding.path) == ("foreign", segment.path_of("other"))
    assert "magic" in finding.detail
    assert store.gc() == [], "it may be another version's"
    with pytest.raises(DamagedSegment):
        InFlightCopier.attach("other")
    other.unlink()
    other.close()


# Journals.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n", "its first line is not that of a journal"),
        ("\0" * 100 + "\n", "its first line is not that of a journal"),
        ('{"algorithm": "sha256", "boot": "b", "metadata": "{}"}\n7 5e7e\nx\n8 ', "line 3 is no"),
    ],
)
def test_a_journal_that_cannot_be_read(
    text: str, told: str, streamer: ResumableStreamer, store: Store
) -> None:
    journal = Path(streamer.path + ".shmstream-journal")
    journal.write_text(text)
    finding = only(store)
    assert (finding.kind, finding.path) == ("damaged", str(journal))
    assert told in finding.detail
    journal.unlink()


def test_a_journal_that_is_just_begun(streamer: ResumableStreamer, store: Store) -> None:
    """Or whose leader was killed between making the file and writing to it."""
    journal = Path(streamer.path + ".shmstream-journal")
    journal.write_text("")
    assert store.check() == []
    assert not Journal(str(journal), "sha256").vouches
    journal.unlink()


@pytest.mark.parametrize("key", ["", "sha256:none", "another name"])
def test_a_record_without_digest_of_no_such_key(key: str, store: Store) -> None:
    path = Path(store.fetch("a name", [content(1, SIZE)]))
    wait_until(lambda: store.flights() == [])
    record = path.with_name(path.name + ".shmstream-record")
    told = json.dumps({"key": key, "digest": None, "metadata": "{}"})
    record.write_text(told)
    finding = only(store)
    assert (finding.kind, finding.path) == ("damaged", str(record))
    assert record.read_text() == told
    path.unlink()
    record.unlink()


def _mode(path: Path) -> None:
    path.chmod(0o666)


def _age(path: Path) -> None:
    os.utime(path, (1, 1))


def _tear(path: Path) -> None:
    path.write_text("{")


def _swap(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _of_a_digest(path: Path) -> None:
    told = {"key": digest(1, SIZE), "digest": None, "metadata": "{}"}
    path.write_text(json.dumps(told))


PAIRS: list[tuple[dict[str, list[Callable[[Path], object]]], set[tuple[str, str]]]] = [
    ({}, set()),
    ({RECORD: [_age]}, set()),
    ({RECORD: [_mode]}, {("exposed", RECORD)}),
    ({"": [_mode]}, {("exposed", "")}),
    ({"": [_mode], RECORD: [_mode]}, {("exposed", ""), ("exposed", RECORD)}),
    ({"": [Path.unlink]}, set()),  # its leader may be about to give it its name
    ({"": [Path.unlink], RECORD: [_age]}, {("abandoned", RECORD)}),
    ({"": [Path.unlink], RECORD: [_tear, _mode]}, {("exposed", RECORD)}),
    ({RECORD: [Path.unlink]}, {("unrecorded", "")}),
    ({RECORD: [_tear, _age]}, {("unrecorded", "")}),
    ({RECORD: [_tear, _mode]}, {("unrecorded", ""), ("exposed", RECORD)}),
    ({RECORD: [_swap]}, {("unrecorded", ""), ("foreign", RECORD)}),
    ({RECORD: [_of_a_digest]}, {("damaged", RECORD)}),
    ({"": [_swap]}, {("foreign", "")}),
    ({"": [_swap], RECORD: [_swap]}, {("foreign", ""), ("foreign", RECORD)}),
]


@pytest.mark.parametrize("first", ["", RECORD])
def test_a_named_blob_and_its_record_are_looked_at_together(
    first: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever the folder lists first, what is wrong with each of them is found, once."""
    names = Layout.names
    listed: list[str] = []

    def in_order(layout: Layout, kinds: Container[str] = KINDS) -> Iterator[tuple[str, str]]:
        found = sorted(names(layout, kinds), reverse=first == RECORD)
        listed[:] = [path for path, _ in found]
        return iter(found)

    monkeypatch.setattr(Layout, "names", in_order)
    path = store.path("a name")
    for changes, expected in PAIRS:
        Path(path).write_bytes(b"x")
        Path(path).chmod(0o600)
        Record("a name", None, Description()).write(path + RECORD)
        for suffix, steps in changes.items():
            for step in steps:
                step(Path(path + suffix))
        found = store.check(verify=False)
        assert {(each.kind, each.path.removeprefix(path)) for each in found} == expected
        assert len(found) == len(expected), changes
        if len(listed) == 2:
            assert listed[0] == path + first
        for left in listed:
            os.unlink(left)


# What somebody else has put there.


def a_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


PLANTED: dict[str, Callable[[Path], object]] = {
    "a folder": a_folder,
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a fifo": os.mkfifo,
    "a file": lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize(
    "name",
    [
        "planted", "blobs/planted", "named/planted", "blobs/sha256/planted", "registry", "cluster",
        "registry/planted", "cluster/tags/planted", ".shmstream-partial", "oci-layout",
    ],
)  # fmt: skip
def test_what_no_store_makes(name: str, plant: Callable[[Path], object], store: Store) -> None:
    path = Path(store.folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    plant(path)
    kinds = {(each.kind, each.path) for each in store.check()}
    is_theirs = name.startswith(("registry/", "cluster/")) and not path.is_symlink()
    may_be = is_theirs and not path.is_fifo()  # what lies there may be lost
    may_be = may_be or (name in ("registry", "cluster") and path.is_dir() and not path.is_symlink())
    assert kinds == (set() if may_be else {("foreign", str(path))})
    store.gc(partial_age=0)
    assert os.path.lexists(path), "it is not ours"
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert store.check() == []


@pytest.mark.parametrize("plant", [*PLANTED.values(), Path.touch, None])
def test_what_lies_in_the_place_of_the_mark(
    plant: Callable[[Path], object] | None, store: Store
) -> None:
    mark = Path(store.folder, ".shmstream")
    mark.unlink()
    if plant is not None:
        plant(mark)
    is_file = mark.is_file() and not mark.is_symlink()
    finding = only(store)
    assert (finding.kind, finding.path) == (
        "damaged" if is_file or plant is None else "foreign",
        str(mark),
    )
    if plant is not None and not is_file:
        with pytest.raises(StoreUnusable, match="remove it"):
            Store(store.folder)
    if plant is not None:
        shutil.rmtree(mark) if mark.is_dir() and not mark.is_symlink() else mark.unlink()
    Store(store.folder)
    assert store.check() == []


def test_a_mark_that_others_may_write_to_or_that_is_huge(store: Store) -> None:
    mark = Path(store.folder, ".shmstream")
    mark.chmod(0o666)
    assert only(store).kind == "exposed"
    mark.chmod(0o600)
    text = mark.read_bytes()
    os.truncate(mark, 1 << 40)
    assert only(store).kind == "damaged"
    mark.write_bytes(text)
    assert store.check() == []


def test_a_pin_with_bytes_and_a_record_of_a_digest(store: Store) -> None:
    path = store.fetch(digest(1, SIZE), [content(1, SIZE)])
    store.pin(digest(1, SIZE))
    assert store.check() == []
    Path(path + ".shmstream-pin").write_bytes(b"x")
    assert only(store).kind == "foreign"
    store.unpin(digest(1, SIZE))
    Path(path + ".shmstream-record").write_text(
        json.dumps({"key": "a name", "digest": None, "metadata": "{}"})
    )
    assert (only(store).kind, only(store).path) == ("foreign", path + ".shmstream-record")
    os.unlink(path + ".shmstream-record")


# Seals.


@pytest.fixture
def durable(folder: str, tmp_path: Path) -> Store:
    try:
        os.setxattr(tmp_path, "user.test", b"")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error.strerror}")
    return make_store(folder, {"durable": True})


@pytest.mark.parametrize("key", [digest(1, SIZE), "a name"])
def test_a_blob_is_hashed_once(key: str, durable: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def count(fd: int, algorithm: str) -> str:
        hashed.append(fd)
        return digest_of(fd, algorithm)

    monkeypatch.setattr("shmstream.storage.check.digest_of", count)
    path = durable.fetch(key, [content(1, SIZE)])
    wait_until(lambda: durable.flights() == [])
    assert durable.check() == []
    assert hashed == [], "it was verified when it came"
    os.utime(path)
    assert durable.check() == []
    assert len(hashed) == 1, "somebody touched it"
    with durable.open(key) as blob:
        assert blob.read(1)
    assert durable.check() == []
    assert len(hashed) == 1, "reading it is no change"
    assert durable.check(verify=True) == []
    assert len(hashed) == 2


def test_a_seal_says_what_it_is_of(durable: Store) -> None:
    path = Path(durable.fetch(digest(1, SIZE), [content(1, SIZE)]))
    wait_until(lambda: durable.flights() == [])
    renamed = path.rename(path.with_name("0" * 64))
    assert only(durable).kind == "damaged", "another digest"
    renamed.rename(path)
    assert durable.check() == []
    facts = path.stat()
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.rename(copy, path)
    assert os.getxattr(path, "user.shmstream.seal"), "it was copied, too"
    with open(path, "r+b") as file:
        file.write(b"damage")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert only(durable).kind == "damaged", "another file, however alike"
    path.unlink()


def test_what_a_disk_loses_is_found_when_all_is_read(durable: Store) -> None:
    path = durable.fetch(digest(1, SIZE), [content(1, SIZE)])
    facts = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"damage")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as if nobody had written
    assert durable.check() == []
    [finding] = durable.check(verify=True)
    assert finding.kind == "damaged"
    os.unlink(path)


def test_what_may_not_be_on_the_disk_is_not_sealed(durable: Store, folder: str) -> None:
    store = make_store(folder, {"durable": False})
    path = store.fetch(digest(1, SIZE), [content(1, SIZE)])
    assert "user.shmstream.seal" not in os.listxattr(path)
    assert durable.check() == []
    assert "user.shmstream.seal" in os.listxattr(path)
