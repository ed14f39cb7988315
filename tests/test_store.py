"""A store's folder: its contents, its user, and which blobs are evicted."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmstream import (
    BlobAborted,
    DamagedBlob,
    DigestMismatch,
    OutOfRoom,
    Store,
    StoreUnusable,
)
from shmstream.stream import segment
from shmstream.stream.spelling import ALGORITHMS, read_digest
from tests.support import flights
from tests.support.flights import make_store
from tests.support.fuse import Mount
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.root import unmount
from tests.support.stores import digest, interrupt

Start = Callable[..., Interpreter]
MIB = 1 << 20
BAD_DIGEST = '{"key": "k", "metadata": "{}", "digest": ["foo:bar"]}'

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other users need root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of two MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], check=True)
    yield mounted
    unmount(mounted)


def put(store: Store, name: str, size: int, used: float | None = None) -> str:
    path = store.fetch(name, [b"x" * size])
    if used is not None:
        os.utime(path, (used, used))
    return path


# What it looks like.


def test_making_a_store_leaves_the_process_as_it_is(tmp_path: Path) -> None:
    """The table of descriptors does not grow; a server asks for that itself."""
    program = (
        "import re, sys; from shmstream import Store;"
        "told = lambda: re.findall(r'FDSize:.*', open('/proc/self/status').read());"
        "before = told(); Store(sys.argv[1]); assert told() == before"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True)


def test_other_tools_can_read_it(store: Store) -> None:
    data = content(1, 5000)
    path = store.fetch(digest(1, 5000), [data])
    assert path == f"{store.folder}/blobs/sha256/{sha256(data)}"
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == sha256(data)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(store.folder).st_mode & 0o777 == 0o700
    assert os.listdir(f"{store.folder}/blobs/sha256") == [sha256(data)]


@pytest.mark.parametrize("complete", [False, True])
def test_a_blob_is_a_file(complete: bool, store: Store) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(5):
            member = tarfile.TarInfo(f"file {number}")
            member.size = 100_000
            tar.addfile(member, io.BytesIO(content(number, 100_000)))
    data = packed.getvalue()
    if complete:
        store.fetch("tar", [data])
    with store.open("tar", iter([data[:300_000], data[300_000:]])) as blob:
        assert blob.role == ("stored" if complete else "leads")
        with tarfile.open(fileobj=blob, mode="r|") as tar:
            names = [(m.name, m.size) for m in tar]
        assert names == [(f"file {number}", 100_000) for number in range(5)]
        assert blob.seek(-10, os.SEEK_END) == len(data) - 10
        assert blob.read(100) == data[-10:]
        assert blob.read(1) == blob.read1(1) == blob.read() == b""
        assert blob.seek(1000) == blob.tell() == blob.position == 1000
        assert blob.read1(5) == data[1000:1005]
        buffer = bytearray(10)
        assert blob.readinto(buffer) == 10
        assert buffer == data[1005:1015]
        out = io.BytesIO()
        assert blob.copy(out) == len(data) - 1015
        assert out.getvalue() == data[1015:]
        assert (blob.size, blob.published) == (len(data), len(data))
        blob.seek(0)
        assert sha256(b"".join(blob)) == sha256(data)
        assert "tar" in repr(blob)
        if complete:
            assert os.fstat(blob.fileno()).st_size == len(data)
        else:
            with pytest.raises(io.UnsupportedOperation):
                blob.fileno()
    assert "closed" in repr(blob)


def test_progress_is_told_while_it_is_copied(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB, rate=4 * MIB)
    told: list[int] = []
    with store.open(digest(1, MIB), url, progress=lambda each: told.append(each.published)) as blob:
        assert blob.copy(io.BytesIO()) == MIB
    assert len(told) > 1


def test_errors_name_the_key(store: Store) -> None:
    with pytest.raises(BlobAborted, match="'the key' was aborted"):
        store.fetch("the key", "/nowhere")


# Keys.


@pytest.mark.parametrize(
    "key",
    [
        "../../escape",
        "/etc/passwd",
        "a\0b",
        "x" * 10_000,
        ".",
        "..",
        "\ud800",
        "blobs/sha256/x",
        " ",
    ],
    ids=lambda key: repr(key[:20]),
)
def test_a_key_never_leaves_the_folder(key: str, store: Store, tmp_path: Path) -> None:
    around = set(tmp_path.iterdir())
    path = store.fetch(key, [b"data"])
    assert Path(path).parent == Path(store.folder, "named")
    assert Path(path).read_bytes() == b"data"
    assert [found for found, _ in store.blobs()] == [key]
    assert set(tmp_path.iterdir()) == around


def test_a_key_that_is_no_key(store: Store) -> None:
    for key in ("", "sha256:", "sha256:../../x", "sha256:" + "a" * 63, "sha512:abc", "a" * 40):
        for use in (store.open, store.aopen, store.is_in_flight, store.__contains__):
            with pytest.raises(ValueError, match="key"):
                use(key)


def spellings(data: bytes) -> list[str]:
    """Keys that mean the digest of `data`, by every algorithm that needs no extra."""
    hashes = [hashlib.new(name, data) for name in ALGORITHMS if name != "blake3"]
    two = [hashlib.sha256(data).hexdigest(), hashlib.sha512(data).hexdigest()]
    marked = [f"{each.name}:{each.hexdigest()}" for each in hashes]
    shouted = [each.upper() for each in (*two, *marked)]
    sri = [f"{each.name}-{base64.b64encode(each.digest()).decode()}" for each in hashes]
    return [*marked, *two, *shouted, *sri, f"sha256={two[0]}"]


def test_a_key_that_means_a_digest_is_verified(store: Store) -> None:
    data = content(1, 1000)
    for key in spellings(data):
        with pytest.raises(DigestMismatch):
            store.fetch(key, [data[:-1], b"x"])
        assert key not in store
    for key in spellings(data):
        assert Path(store.fetch(key, [data])).read_bytes() == data
    kept = [key for key, _ in store.blobs()]
    assert set(kept) == {read_digest(each) for each in spellings(data)}
    assert len(kept) == len(set(kept)), "one of each digest"
    assert store.check() == []


def test_a_url_with_a_digest_in_its_fragment_is_verified_by_it(store: Store) -> None:
    data = content(1, 1000)
    key = f"https://host/a.whl#sha256={digest(1, 1000)[7:]}"
    with pytest.raises(DigestMismatch):
        store.fetch(key, [data[:-1], b"x"])
    assert key not in store
    assert Path(store.fetch(key, [data])).read_bytes() == data
    assert [each for each, _ in store.blobs()] == [key]
    assert store.check() == []
    with pytest.raises(ValueError, match="looks like a digest"):
        store.fetch("https://host/a.whl#sha256=9f86", [data])


def test_two_spellings_are_one_flight(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", count=1, stall_after=500_000)
    key = digest(1, MIB)
    with store.open(key.upper(), url) as blob, store.open(key[7:], url) as other:
        assert (blob.role, blob.key, other.role, other.key) == ("leads", key, "follows", key)
        assert store.is_in_flight(f"SHA-256={key[7:]}")
        origin.wait("/blob", bool)
        origin.release()
        assert blob.read() == other.read() == content(1, MIB)


def test_blobs_of_a_rare_digest_are_cared_for(start: Start, folder: str, origin: Origin) -> None:
    """They are found damaged, resumed, and evicted, as all others."""
    store = make_store(folder, {})
    key = f"md5:{hashlib.md5(content(1, 2 * MIB)).hexdigest()}"
    interrupt(start, folder, origin, key, 2 * MIB, MIB)
    store.gc()
    with store.open(key, origin.url("/blob")) as blob:
        assert blob.read() == content(1, 2 * MIB)
        path = Path(blob.path)
        blob.wait()
    assert origin.requests("/blob")[1].status == 206
    assert path.parent == Path(folder, "blobs", "md5")
    path.write_bytes(b"damage")
    assert [(each.kind, each.path) for each in store.check()] == [("damaged", str(path))]
    assert store.evict(0) == [str(path)]


def test_a_blob_whose_digest_cannot_be_computed_here(store: Store) -> None:
    shelf = Path(store.folder, "blobs", "blake3")
    shelf.mkdir(0o700)
    path = shelf / ("a" * 64)
    path.touch(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "blake3", None)
        [finding] = store.check()
    assert (finding.kind, finding.path) == ("unverified", str(path))
    assert "shmstream[blake3]" in finding.detail
    path.unlink()


# Who may use which folder.


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="is no folder"):
        Store(tmp_path / "file")
    with pytest.raises(StoreUnusable):
        Store("/proc/nowhere")


def test_a_folder_that_others_write_to(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    with pytest.raises(StoreUnusable, match="chmod go-w"):
        Store(tmp_path / "store")


@pytest.mark.parametrize("shelf", ["blobs", "blobs/sha256", "named"])
def test_a_symbolic_link_for_a_shelf(shelf: str, store: Store, tmp_path: Path) -> None:
    planted = Path(store.folder, shelf)
    kept = tmp_path / "kept"
    planted.rename(kept)
    planted.symlink_to(kept)
    with pytest.raises(StoreUnusable, match="symbolic link"):
        Store(store.folder)
    planted.unlink()
    kept.rename(planted)


def test_a_symbolic_link_for_a_blob(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    planted = Path(store.folder, "blobs", *digest(1, 5000).split(":"))
    planted.symlink_to(secret)
    with pytest.raises(DamagedBlob, match="symbolic link"):
        store.open(digest(1, 5000), [content(1, 5000)])
    assert [each.kind for each in store.check()] == ["foreign"]
    planted.unlink()
    partial = Path(f"{planted}.shmstream-partial")
    partial.symlink_to(secret)
    with pytest.raises(StoreUnusable, match="symbolic"):
        store.open(digest(1, 5000), [content(1, 5000)])
    assert secret.read_text() == "secret"
    partial.unlink()


@needs_root
def test_two_users(store: Store, tmp_path: Path) -> None:
    store.fetch("key", [b"data"])
    program = (
        "import os, sys; from shmstream import Store, StoreUnusable\n"
        "os.setuid(65534)\n"
        "try: Store(sys.argv[1])\n"
        "except StoreUnusable as error: print(error)"
    )
    for parent in (tmp_path, *tmp_path.parents):  # pytest makes its folders private
        if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
            parent.chmod(0o711)
    unwritable = tmp_path / "unwritable"
    unwritable.mkdir()
    os.chown(unwritable, 65534, 65534)
    unwritable.chmod(0o500)
    cases = [(store.folder, mode, "user 0 owns") for mode in (0o700, 0o755, 0o777)]
    for path, mode, reason in [*cases, (str(unwritable), 0o500, "Permission denied")]:
        Path(path).chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", program, path],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert reason in done.stdout, done
    Path(store.folder).chmod(0o700)


@needs_root
def test_a_read_only_file_system(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mounted], check=True)
    with pytest.raises(StoreUnusable, match="Read-only file system"):
        Store(mounted / "store")
    subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("answer", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_that_refuses_locks(answer: str, fuse: Mount) -> None:
    system = fuse(answer)
    with pytest.raises(StoreUnusable, match="its file system has no working locks"):
        Store(system.mounted / "new" / "store")
    assert os.listdir(system.folder) == [], "nothing is left behind"
    assert len(system.locks()) == 1, "the kernel asked the file system"


def test_a_file_system_that_gives_everybody_every_lock(fuse: Mount) -> None:
    system = fuse("everybody")
    with pytest.raises(StoreUnusable, match="grants one lock to two holders"):
        Store(system.mounted / "store")
    assert os.listdir(system.folder) == []
    first, second = system.locks()
    assert first[:4] == second[:4], "one range"
    assert first[4] != second[4], "two holders: open-file-description locks get here as such"


def test_a_file_system_that_never_frees_a_lock(fuse: Mount) -> None:
    system = fuse("for ever")
    with pytest.raises(StoreUnusable, match="keeps a lock whose holder is gone"):
        Store(system.mounted / "store")
    assert os.listdir(system.folder) == []


def test_a_store_whose_file_system_loses_its_locks_stays_as_it_is(
    fuse: Mount, store: Store
) -> None:
    system = fuse("ENOLCK")
    store.fetch("key", [b"data"])
    moved = system.folder / "store"
    shutil.copytree(store.folder, moved)
    before = sorted(moved.rglob("*"))
    with pytest.raises(StoreUnusable, match="its file system has no working locks"):
        Store(system.mounted / "store")
    assert sorted(moved.rglob("*")) == before


def test_a_file_system_in_user_space_with_good_locks(fuse: Mount, origin: Origin) -> None:
    system = fuse("until release")
    url = origin.serve("/blob", seed=1, size=MIB)
    store = make_store(str(system.mounted / "store"), {"durable": True})
    path = store.fetch(digest(1, MIB), url)
    assert sha256(Path(path).read_bytes()) == sha256(content(1, MIB))
    wait_until(lambda: store.flights() == [])
    assert store.check() == []
    assert [0, 0] in [each[2:4] for each in system.locks()], "the partial file, all of it"


# Room.


@needs_root
def test_no_room_before_the_first_byte(small_disk: Path, origin: Origin) -> None:
    store = make_store(str(small_disk / "store"), {})
    url = origin.serve("/blob", seed=1, size=4 * MIB)
    with pytest.raises(OutOfRoom, match="space"):
        store.fetch(digest(1, 4 * MIB), url)
    wait_until(lambda: store.flights() == [])
    assert list(store._layout.entries()) == []
    assert store.fetch("small", [b"x"]), "and there still is for what fits"


@needs_root
def test_no_room_in_the_middle(small_disk: Path, origin: Origin) -> None:
    store = make_store(str(small_disk / "store"), {})
    url = origin.serve("/blob", seed=1, size=4 * MIB, framing="chunked")
    with pytest.raises(OutOfRoom, match="space"):
        store.fetch(digest(1, 4 * MIB), url)
    wait_until(lambda: store.flights() == [])
    store.gc(partial_age=0)
    assert store.check() == []


def test_eviction_is_by_last_use(store: Store) -> None:
    paths = [put(store, f"key {number}", 1000, 1000.0 + number) for number in range(5)]
    store.open("key 0").close()  # now the most recently used
    assert store.evict(3500) == [paths[1], paths[2]]
    assert sorted(key or "" for key, _ in store.blobs()) == ["key 0", "key 3", "key 4"]
    assert store.evict(0) == [paths[3], paths[4], paths[0]]
    assert store.check() == []


def test_eviction_breaks_no_reader(store: Store) -> None:
    put(store, "key", 100_000)
    with store.open("key") as blob:
        assert blob.read(10) == b"x" * 10
        assert len(store.evict(0)) == 1
        assert len(blob.read()) == 99_990
    assert "key" not in store


def test_a_store_with_a_limit_makes_room_by_itself(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 10_000})
    for number in range(20):
        put(store, f"key {number}", 3000, 1000.0 + number)
    wait_until(lambda: sum(each.size for _, each in store.blobs()) <= 10_000)
    assert [key for key, _ in store.blobs()] == ["key 17", "key 18", "key 19"]
    with pytest.raises(OutOfRoom, match="this store keeps 10000 at most"):
        put(store, "larger than all", 20_000)
    assert [key for key, _ in store.blobs()] == ["key 17", "key 18", "key 19"]


def test_eviction_spares_flights(folder: str, origin: Origin) -> None:
    store = make_store(folder, {"max_bytes": MIB})
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(digest(1, MIB), url) as blob:
        blob.read(100_000)
        assert store.evict(0) == []
        origin.release()
        assert blob.read() == content(1, MIB)[100_000:]


# Damage, and housekeeping.


def test_a_damaged_blob_is_found_and_replaced(store: Store, folder: str) -> None:
    data = content(1, 100_000)
    for key in (digest(1, 100_000), "a name"):
        path = store.fetch(key, [data])
        with open(path, "r+b") as file:
            file.seek(50_000)
            file.write(b"damage")
        [finding] = store.check()
        assert (finding.kind, finding.path) == ("damaged", path)
        assert store.check(verify=False) == []
        careful = make_store(folder, {"verify": True})
        with pytest.raises(DamagedBlob, match="its digest is sha256"):
            careful.open(key)
        with careful.open(key, [data]) as blob:
            assert blob.role == "leads"
            assert blob.read() == data
        with careful.open(key) as blob:
            assert blob.role == "stored"


def test_check_finds_what_should_not_be_there(store: Store) -> None:
    path = Path(store.fetch("a name", [b"data"]))
    shelf = path.parent
    (shelf / "foreign").write_text("")
    (shelf / ("0" * 64)).mkdir()
    Path(f"{path}.shmstream-record").unlink()
    path.chmod(0o666)
    orphan = shelf / ("1" * 64 + ".shmstream-partial")
    orphan.write_text("no journal vouches for this")
    unfinished = shelf / ("2" * 64 + ".shmstream-record.12345678")
    unfinished.write_text("{")
    assert len(store.check()) == 4, "what is young may be about to get what it lacks"
    for each in (orphan, unfinished):
        os.utime(each, (1000, 1000))
    kinds = sorted(each.kind for each in store.check())
    assert kinds == ["abandoned", "abandoned", "exposed", "foreign", "foreign", "unrecorded"]
    assert all(str(each) for each in store.check())
    assert sorted(store.gc()) == [str(orphan), str(unfinished)]
    assert path.exists()
    path.unlink()
    (shelf / "foreign").unlink()
    (shelf / ("0" * 64)).rmdir()


def test_gc_keeps_what_can_be_resumed_for_its_time(
    start: Start,
    folder: str,
    origin: Origin,
    store: Store,
) -> None:
    interrupt(start, folder, origin, digest(1, 2 * MIB), 2 * MIB, MIB)
    assert [each.kind for each in store.check()] == ["abandoned"], "the stream"
    store.gc()
    assert store.check() == []
    [partial] = Path(folder).rglob("*.shmstream-partial")
    old = time.time() - 8 * 24 * 3600
    os.utime(partial, (old, old))
    assert store.gc() == [str(partial)]
    [journal] = Path(folder).rglob("*.shmstream-journal")
    os.utime(journal, (old, old))
    assert store.gc() == [str(journal)]
    assert store.check() == []


def test_gc_runs_by_itself_now_and_then(store: Store) -> None:
    orphan = Path(store.folder, "named", "1" * 64 + ".shmstream-partial")
    orphan.write_text("no journal vouches for this")
    os.utime(orphan, (1000, 1000))
    store.fetch("key", [b"data"])
    assert orphan.exists(), "the store is young"
    os.utime(Path(store.folder, ".shmstream"), (1000, 1000))
    store.fetch("another key", [b"data"])
    wait_until(lambda: not orphan.exists())


def test_gc_touches_nothing_alive(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=500_000)
    with store.open(digest(1, MIB), url) as blob:
        blob.read(100_000)
        assert store.gc(partial_age=0) == []
        assert store.check() == []
        [flight] = store.flights()
        assert (flight.key, flight.size, flight.path) == (digest(1, MIB), MIB, blob.path)
        assert flight.leader is not None
        assert [each.identity.pid for each in flight.followers] == [os.getpid()]
        origin.release()
        assert blob.read() == content(1, MIB)[100_000:]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": 5}', BAD_DIGEST, "[" * 100_000, "\0" * 100]
)
def test_a_record_or_journal_that_says_anything(text: str, store: Store) -> None:
    path = store.fetch("a name", [b"data"])
    record = Path(f"{path}.shmstream-record")
    record.write_text(text)
    store.check()
    store.blobs()
    Path(path).unlink()
    record.unlink()
    Path(f"{path}.shmstream-journal").write_text(text)
    Path(f"{path}.shmstream-partial").write_bytes(b"other bytes")
    assert Path(store.fetch("a name", [b"data"])).read_bytes() == b"data"


def test_the_journal_vouches_for_nothing_of_another_boot(store: Store) -> None:
    path = store._layout.place("a name")
    header = {"algorithm": "sha256", "boot": "another", "metadata": '{"validator": "v"}'}
    Path(path.journal).write_text(json.dumps(header) + "\n")
    Path(path.partial).write_bytes(b"other bytes")
    assert Path(store.fetch("a name", [b"data"])).read_bytes() == b"data"


def test_a_store_survives_a_fork_and_a_pickle_of_its_errors(store: Store) -> None:
    child = os.fork()
    if child == 0:
        try:
            good = Path(store.fetch("from the child", [b"data"])).read_bytes() == b"data"
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert "from the child" in store
    assert segment.names() == []


def test_taker_reports_errors(start: Start, folder: str) -> None:
    """The role that other tests use reports errors as they are."""
    taker = start(flights.take, folder, {})
    taker.hear()
    taker.say(["key", "/nowhere", 0])
    assert "leads" in taker.hear().values()
    assert taker.hear()["error"] == "SourceFailed"
    taker.finish()


def test_sizes_and_folders_as_people_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store("~/store", max_bytes="10GiB")
    assert (store.folder, store.max_bytes) == (str(tmp_path / "store"), 10 << 30)
    path = store.fetch("a key", [b"data"])
    assert store.evict("1KiB") == []
    with pytest.raises(ValueError, match="to remove the blob of one key, call"):
        store.evict("a key")
    assert store.evict("0") == [path]
    monkeypatch.chdir(tmp_path)
    for elsewhere in ("", "~nobody-has-this-name/blobs", "s3://bucket/blobs", "file:///blobs"):
        with pytest.raises(StoreUnusable, match="a store is a folder on this machine"):
            Store(elsewhere)
    assert [each.name for each in tmp_path.iterdir()] == ["store"]
    assert Store(os.fsencode(tmp_path / "store")).folder == store.folder  # type: ignore[arg-type]
    for wrong in ("much", -1):
        with pytest.raises(ValueError, match=r"size|number of bytes"):
            Store(tmp_path / "store", max_bytes=wrong)
    with pytest.raises(TypeError, match="a text such as"):
        Store(tmp_path / "store", max_bytes=1.5)  # type: ignore[arg-type]
