"""A store that hashes no named blob of which no digest was given (`hash_named=False`).

Nothing that a flight promises needs that digest: a leader is killed and another process goes on,
the last chunk of a blob with a size is withheld, a digest that was given is verified. Only a
download that a reboot interrupts begins anew.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    BlobAborted,
    ContentChanged,
    DamagedBlob,
    DigestMismatch,
    SizeMismatch,
    Store,
)
from shmstream.storage.record import Record
from shmstream.stream import digest
from shmstream.stream.digest import RunningDigest, digest_of
from tests.support import flights
from tests.support.containers import Container, send
from tests.support.flights import LEADER_POINTS, make_store
from tests.support.interpreters import Interpreter, Link, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import has_published, reboot

Start = Callable[..., Interpreter]

MIB = 1 << 20
CHUNK = 65536
SIZE = 2 * MIB + 1234
FREE = SIZE // CHUNK * CHUNK  # all but the last chunk
DATA, OTHER = content(1, SIZE), content(2, SIZE)
DIGEST, OF_OTHER = f"sha256:{sha256(DATA)}", f"sha256:{sha256(OTHER)}"
NAME = "a name"
OFF: dict[str, Any] = {"hash_named": False}


@pytest.fixture
def off(folder: str) -> Store:
    return make_store(folder, OFF)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far each running digest of this process was, at each step that it was to take."""
    step, steps = RunningDigest._step, []

    def counted(running: RunningDigest) -> bool:
        steps.append(running.covered)
        return step(running)

    monkeypatch.setattr(RunningDigest, "_step", counted)
    monkeypatch.setattr(digest, "_LONG", 0.0)  # if at all, from the first byte on
    return steps


@pytest.fixture
def no_hashing(hashed: list[int]) -> Iterator[None]:
    yield
    assert hashed == []


def _die(_: RunningDigest) -> bool:
    os._exit(70)


def take(link: Link, folder: str, options: dict[str, Any]) -> None:
    """A patient taker. With `hash_named=False` it dies if it hashes, else it hashes from the first
    byte on.
    """
    digest._LONG = 0.0
    if not options.get("hash_named", True):
        vars(digest)["RunningDigest"]._step = _die
    flights.take_patiently(link, folder, options)


def recorded(store: Store, key: str = NAME) -> str | None:
    record = Record.read(store.path(key) + ".shmstream-record")
    assert record is not None
    return record.digest


def outcome(taker: Interpreter) -> dict[str, Any]:
    """What came of it in the end; its role, said before, is passed over."""
    heard = taker.hear()
    while "bytes" not in heard:
        heard = taker.hear()
    return dict(heard)


def begin(start: Start, folder: str, options: dict[str, Any], url: str, **more: Any) -> Interpreter:
    taker = start(take, folder, options, **more)
    taker.hear()
    taker.say([NAME, url, 0])
    return taker


# One process.


def test_nothing_is_hashed(off: Store, origin: Origin, hashed: list[int]) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    sources: list[Any] = [url, iter([DATA[:MIB], DATA[MIB:]]), [DATA]]
    for number, source in enumerate(sources):
        key = f"name {number}"
        with off.open(key, source) as blob:
            assert blob.read() == DATA
            blob.wait()
        wait_until(lambda: not off.flights())
        assert recorded(off, key) is None
    assert Path(off.fetch("fetched", url)).read_bytes() == DATA
    with off.create("written") as made:
        made.write(DATA)
    assert (made.digest, recorded(off, "written")) == (None, None)
    assert off.open("written").read() == DATA
    assert not list(Path(off.folder).rglob("*.shmstream-journal"))
    assert hashed == []
    make_store(off.folder, {}).fetch("hashed", [DATA])
    assert hashed, "else this test sees nothing"


def test_check_computes_the_digest_once(
    off: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And seals the blob, where the file system has extended attributes."""
    hashed: list[int] = []

    def count(fd: int, algorithm: str) -> str:
        hashed.append(fd)
        return digest_of(fd, algorithm)

    monkeypatch.setattr("shmstream.storage.check.digest_of", count)
    path = Path(off.fetch(NAME, [DATA]))
    wait_until(lambda: off.flights() == [])
    assert (off.check(verify=False), recorded(off), hashed) == ([], None, [])
    with make_store(folder, {**OFF, "verify": True}).open(NAME) as blob:
        assert (blob.role, blob.read()) == ("stored", DATA), "there is nothing to verify it by"
    assert (off.check(), recorded(off), len(hashed)) == ([], DIGEST, 1)
    assert off.check() == []
    assert len(hashed) == (1 if _has_attributes(path) else 2)
    path.write_bytes(OTHER)
    assert [each.kind for each in off.check()] == ["damaged"]
    with make_store(folder, {**OFF, "verify": True}).open(NAME, [DATA]) as blob:
        assert (blob.role, blob.read()) == ("leads", DATA), "its digest is known by now"


def _has_attributes(path: Path) -> bool:
    """Whether the file system of that file has extended attributes, which a seal needs."""
    try:
        os.setxattr(path, "user.test", b"")
    except OSError:
        return False
    return True


def test_a_digest_that_is_given_is_verified(off: Store) -> None:
    url = f"https://host/a.whl#sha256={DIGEST[7:]}"
    for key, given in ((NAME, DIGEST), (DIGEST, None), (url, None)):
        with pytest.raises(DigestMismatch):
            off.fetch(key, [OTHER], digest=given)
        wait_until(lambda: not off.flights())
        assert Path(off.fetch(key, [DATA], digest=given)).read_bytes() == DATA
    assert recorded(off) == DIGEST
    with pytest.raises(DigestMismatch), off.create("written", digest=DIGEST) as made:
        made.write(OTHER)


def test_a_digest_that_is_asked_for_later(off: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored blob is hashed once; if it is another one, it is downloaded anew."""
    off.fetch(NAME, [DATA])
    with pytest.raises(DamagedBlob, match="its digest is sha256:"):
        off.open(NAME, digest=OF_OTHER)
    assert recorded(off) == DIGEST
    monkeypatch.setattr("shmstream.storage.layout.digest_of", None)
    off.open(NAME, digest=DIGEST).close()
    monkeypatch.undo()
    with off.open(NAME, [OTHER], digest=OF_OTHER) as blob:
        assert (blob.role, blob.read()) == ("leads", OTHER)
    wait_until(lambda: not off.flights())
    assert recorded(off) == OF_OTHER


@pytest.mark.parametrize("wanted", [DIGEST, OF_OTHER])
def test_a_digest_that_is_asked_for_meanwhile(wanted: str, off: Store, origin: Origin) -> None:
    """A reader of the flight that wants a digest gets only bytes that have it."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=MIB)
    with off.open(NAME, url) as blob, off.open(NAME, [OTHER], digest=wanted) as strict:
        assert blob.read(MIB // 2) == DATA[: MIB // 2]
        assert (strict.role, strict.published) == ("follows", 0)
        origin.release()
        assert strict.read() == (DATA if wanted == DIGEST else OTHER)
        assert blob.read() == DATA[MIB // 2 :]
    wait_until(lambda: not off.flights())
    assert recorded(off) == wanted


@pytest.mark.usefixtures("no_hashing")
def test_the_last_chunk_of_a_blob_with_a_size_is_withheld(off: Store) -> None:
    pieces: list[Callable[[], bool]] = []

    def source() -> Iterator[bytes]:
        yield DATA
        wait_until(pieces[0])
        yield b"one more"

    with off.open(NAME, source(), size=SIZE) as blob:
        pieces.append(lambda: blob.published == FREE)
        assert blob.read(FREE) == DATA[:FREE]
        with pytest.raises(SizeMismatch):
            blob.read()
        assert blob.published == FREE
    wait_until(lambda: not off.flights())
    made = off.create(NAME, SIZE)
    with off.open(NAME) as blob:
        made.write(DATA)
        made.flush()
        assert blob.published == FREE
        made.commit()
        assert blob.read() == DATA


def test_a_blob_that_replaces_a_hashed_one(store: Store, off: Store) -> None:
    """The digest of the blob before is not recorded for the new one."""
    store.fetch(NAME, [DATA])
    assert recorded(store) == DIGEST
    with off.create(NAME, replace=True) as made:
        made.write(OTHER)
    assert recorded(off) is None
    assert off.check() == []
    assert recorded(off) == OF_OTHER


@pytest.mark.usefixtures("no_hashing")
def test_several_sources(off: Store, origin: Origin) -> None:
    """A second one goes on, if it has the same content; two contents are never mixed."""
    halves = [origin.serve(path, seed=1, size=SIZE) for path in ("/one", "/two")]
    for path in ("/one", "/two"):
        origin.change(path, first=0, count=1, close_after=MIB)
        origin.change(path, first=1, count=None, status=404)
    good = origin.serve("/good", seed=1, size=SIZE)
    assert Path(off.fetch(NAME, [halves[0], good])).read_bytes() == DATA
    assert [each.range for each in origin.requests("/good")] == [f"bytes={MIB}-"]
    with pytest.raises(ContentChanged):
        off.fetch("two", [halves[1], origin.serve("/other", seed=2, size=SIZE)])
    short = origin.serve("/short", seed=1, size=SIZE - 1)
    assert Path(off.fetch("three", [short, good], size=SIZE)).read_bytes() == DATA
    wait_until(lambda: not off.flights())


@pytest.mark.usefixtures("no_hashing")
def test_it_is_cancelled_and_evicted(off: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=MIB)
    with off.open(NAME, url) as blob:
        assert blob.read(MIB // 2) == DATA[: MIB // 2]
        assert off.cancel(NAME)
        with pytest.raises(BlobAborted):
            blob.read()
    origin.release()
    wait_until(lambda: not off.flights())
    assert list(Path(off.folder, "named").iterdir()) == []
    path = off.fetch(NAME, url)
    wait_until(lambda: not off.flights())
    assert off.evict(0) == [path]
    assert list(Path(off.folder, "named").iterdir()) == []


# Processes that end.


@pytest.mark.parametrize("point", [each for each in LEADER_POINTS if each != "before the digest"])
def test_a_leader_killed_at_a_named_point(
    point: str, start: Start, folder: str, origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    if point == "after the takeover":
        origin.change("/blob", count=1, stall_after=MIB)
        first = begin(start, folder, OFF, url)
        first.hear()
        wait_until(partial(has_published, Store(folder), MIB))
        first.kill()
    doomed = start(flights.take, folder, OFF, point)
    doomed.hear()
    doomed.say([NAME, url, 0])
    doomed.wait_killed()
    followers = [begin(start, folder, OFF, url) for _ in range(2)]
    for follower in followers:
        heard = outcome(follower)
        assert (heard["error"], heard["sha256"]) == (None, sha256(DATA))
        follower.finish()
    Store(folder).gc()
    assert recorded(Store(folder)) is None


@pytest.mark.parametrize("hashes", [(True, False), (False, True), (False, False)])
def test_a_leader_is_killed_and_a_follower_takes_over(
    hashes: tuple[bool, bool], start: Start, folder: str, origin: Origin, store: Store
) -> None:
    """Each process hashes what it brings to the end as its own store says."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = begin(start, folder, {"hash_named": hashes[0]}, url)
    assert leader.hear()["role"] == "leads"
    follower = begin(start, folder, {"hash_named": hashes[1]}, url)
    assert follower.hear()["role"] == "follows"
    wait_until(partial(has_published, store, MIB))
    leader.kill()
    heard = outcome(follower)
    assert (heard["error"], heard["sha256"], heard["role"]) == (None, sha256(DATA), "leads")
    follower.finish()
    assert [each.range for each in origin.requests("/blob")] == [None, f"bytes={MIB}-"]
    assert recorded(store) == (DIGEST if hashes[1] else None)
    assert store.check() == []
    assert recorded(store) == DIGEST


@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize("swept", [False, True])
def test_all_killed_and_asked_again(
    swept: bool, hashes: bool, start: Start, folder: str, store: Store, origin: Origin
) -> None:
    """While the machine is up, its partial file is kept by its seal, which needs no digest."""
    _interrupt(start, folder, OFF, store, origin, SIZE, MIB)
    if swept:
        assert not [each for each in store.gc() if "partial" in each]
    next_one = begin(start, folder, {"hash_named": hashes}, origin.url("/blob"))
    heard = outcome(next_one)
    assert (heard["error"], heard["sha256"]) == (None, sha256(DATA))
    next_one.finish()
    assert [each.range for each in origin.requests("/blob")] == [None, f"bytes={MIB}-"]
    assert recorded(store) == (DIGEST if hashes else None)


def _partial_files(folder: str) -> list[Path]:
    return list(Path(folder).rglob("*.shmstream-partial"))


def _interrupt(
    start: Start,
    folder: str,
    options: dict[str, Any],
    store: Store,
    origin: Origin,
    size: int,
    at: int,
) -> None:
    """Kill the only process of a flight of /blob, `at` bytes after its beginning."""
    url = origin.serve("/blob", seed=1, size=size, rate=64 * MIB)
    origin.change("/blob", first=0, count=1, stall_after=at)
    taker = begin(start, folder, options, url)
    taker.hear()
    wait_until(lambda: bool(store.flights()) and store.flights()[0].published == at)
    taker.kill()


@pytest.mark.parametrize("hashed_before", [False, True])
@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_after_a_reboot(
    is_damaged: bool,
    hashes: bool,
    hashed_before: bool,
    start: Start,
    folder: str,
    store: Store,
    origin: Origin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a checkpoint nothing is kept; a checkpoint of a process that hashes is good."""
    size = 40 * MIB
    _interrupt(start, folder, {"hash_named": hashed_before}, store, origin, size, 36 * MIB)
    [partial_file] = _partial_files(folder)
    [journal] = Path(folder).rglob("*.shmstream-journal")
    reboot(folder, monkeypatch)
    checkpoints = [int(line.split()[0]) for line in journal.read_text().splitlines()[1:]]
    assert bool(checkpoints) == hashed_before
    expected = checkpoints[-1] if checkpoints else 0
    if is_damaged:
        expected = 0
        with partial_file.open("r+b") as file:
            file.write(bytes(4096))
    path = make_store(folder, {"hash_named": hashes}).fetch(NAME, origin.url("/blob"))
    assert sha256(Path(path).read_bytes()) == sha256(content(1, size))
    assert origin.requests("/blob")[1].range == (f"bytes={expected}-" if expected else None)
    wait_until(lambda: not store.flights())
    assert (recorded(store) is not None) == hashes


def test_a_partial_file_whose_seal_is_broken(
    start: Start, folder: str, store: Store, origin: Origin
) -> None:
    """As by another program, which may have written to it: without a digest nothing is kept."""
    _interrupt(start, folder, OFF, store, origin, SIZE, MIB)
    store.gc()
    [partial_file] = _partial_files(folder)
    with partial_file.open("r+b") as file:
        file.write(bytes(4096))
    assert Path(make_store(folder, OFF).fetch(NAME, origin.url("/blob"))).read_bytes() == DATA
    assert [each.range for each in origin.requests("/blob")] == [None, None]


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"),
    reason="only root can make namespaces",
)
def test_a_process_in_another_container_goes_on(
    start: Start, containers: tuple[Container, Container], origin: Origin, folder: str, store: Store
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=MIB)
    leader = begin(start, folder, OFF, url, within=containers[0].within)
    assert leader.hear()["role"] == "leads"
    follower = begin(start, folder, OFF, url, within=containers[1].within)
    assert follower.hear()["role"] == "follows"
    wait_until(lambda: [each.stat().st_size for each in _partial_files(folder)] == [MIB])
    send(leader, signal.SIGKILL)
    heard = outcome(follower)
    assert (heard["error"], heard["sha256"], heard["role"]) == (None, sha256(DATA), "leads")
    follower.finish()
    assert [each.range for each in origin.requests("/blob")] == [None, f"bytes={MIB}-"]
    assert recorded(store) is None
