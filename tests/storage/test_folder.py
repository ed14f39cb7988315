"""The folder of a store: gone, unmounted, read-only, of a group, or with what others put there."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shmstream import BlobAborted, BlobNotFound, DamagedBlob, Store, StoreUnusable
from shmstream.asgi import InFlightResponse, Message
from shmstream.storage.record import Record
from tests.support.flights import make_store
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.root import GROUP, as_user, become, make_shared, mount, needs_root, unmount
from tests.support.stores import digest

Start = Callable[..., Interpreter]
MIB = 1 << 20
KEY = digest(1, 1000)
DATA = content(1, 1000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system with a space in its name."""
    folder = tmp_path / "a disk"
    mount(folder)
    yield folder
    unmount(folder)


# It is removed while a process has it open.


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_what_is_in_it(folder: Path) -> None:
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def remove_a_shelf(folder: Path) -> None:
    shutil.rmtree(folder / "blobs", ignore_errors=True)


def replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(0o700)


@pytest.mark.parametrize("max_flights", [None, 3])
@pytest.mark.parametrize("remove", [remove_all, remove_what_is_in_it, remove_a_shelf, replace])
def test_a_store_that_was_removed_works_again(
    remove: Callable[[Path], None], max_flights: int | None, folder: str
) -> None:
    store = make_store(folder, {"max_flights": max_flights, "max_bytes": MIB})
    other = Store(folder)
    store.fetch(KEY, [DATA])
    for source in (None, [DATA]):
        remove(Path(folder))
        assert store.blobs() == []
        assert store.evict(0) == []
        assert store.stock().count == 0
        assert KEY not in store
        if source is None:
            with pytest.raises(BlobNotFound):
                store.open(KEY)
        else:
            assert Path(store.fetch(KEY, source)).read_bytes() == DATA
    assert Path(other.fetch(KEY)).read_bytes() == DATA
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    remove(Path(folder))

    async def read() -> bytes:
        async with store.aopen(KEY, [DATA]) as blob:
            return await blob.read()

    assert asyncio.run(read()) == DATA


def test_what_is_there_instead_is_checked_as_at_the_beginning(folder: str) -> None:
    store = make_store(folder, {})
    replace(Path(folder))
    Path(folder).chmod(0o777)
    with pytest.raises(StoreUnusable, match="others may write to"):
        store.fetch(KEY, [DATA])
    shutil.rmtree(folder)
    Path(folder).write_text("")
    with pytest.raises(StoreUnusable, match="no folder"):
        store.fetch(KEY, [DATA])
    Path(folder).unlink()
    assert store.fetch(KEY, [DATA])


@needs_root
@pytest.mark.parametrize("inside", [True, False])
def test_a_store_that_is_unmounted_is_not_made_on_the_disk_below(
    inside: bool, tmp_path: Path
) -> None:
    disk = tmp_path / "a disk"
    mount(disk, "size=8m,mode=0700")
    store = make_store(str(disk / "store" if inside else disk), {})
    store.fetch(KEY, [DATA])
    unmount(disk)
    for call in (
        lambda: store.open(KEY),
        lambda: store.fetch(KEY, [DATA]),
        lambda: store.aopen(KEY, [DATA]),
        lambda: store.fetch("another", [DATA]),
        lambda: KEY in store,
        store.blobs,
        store.check,
        lambda: store.evict(0),
    ):
        with pytest.raises(StoreUnusable, match="is not mounted any more at"):
            call()
    assert list(disk.iterdir()) == []
    assert store.problem() is not None
    mount(disk, "size=8m,mode=0700")
    assert Path(store.fetch(KEY, [DATA])).read_bytes() == DATA
    assert store.problem() is None
    unmount(disk)


def answer_of(store: Store, key: str) -> tuple[int, str | None]:
    """Status and Retry-After of the answer to a GET of `key`."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [], "http_version": "1.1"}
    asyncio.run(InFlightResponse(store, key, [DATA])(scope, receive, send))
    headers = dict(sent[0]["headers"])
    return sent[0]["status"], headers.get(b"retry-after", b"").decode() or None


@needs_root
def test_a_server_answers_503(tmp_path: Path) -> None:
    """Whatever is wrong with the folder: no traceback, and nothing about the source."""
    disk = tmp_path / "disk"
    mount(disk)
    store = make_store(str(disk / "store"), {})
    assert answer_of(store, KEY) == (200, None)
    for plant in (link, a_folder, fifo):
        place = store._layout.place("a name")
        for path in (place.partial,):
            plant(path)
            assert answer_of(store, "a name") == (503, "5")
            unplant(path)
    assert answer_of(store, "a name") == (200, None)
    remount = ["mount", "-o", "remount,ro", str(disk)]
    wait_until(lambda: subprocess.run(remount).returncode == 0)  # busy until the flight has ended
    assert answer_of(store, KEY) == (200, None)
    assert answer_of(store, "missing") == (503, "5")
    unmount(disk)
    for key in (KEY, "missing"):
        assert answer_of(store, key) == (503, "5")
    mount(disk)
    assert answer_of(store, KEY) == (200, None)
    unmount(disk)


# It can only be read.


@needs_root
@pytest.mark.parametrize("verify", [True, False])
def test_a_read_only_store_opens_what_is_complete(verify: bool, disk: Path) -> None:
    folder = disk / "store"
    made = make_store(str(folder), {})
    made.fetch(KEY, [DATA])
    made.fetch("a name", [DATA])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    times = (folder / "blobs" / KEY.replace(":", "/")).stat()
    store = make_store(str(folder), {"verify": verify, "max_bytes": 1, "max_flights": 2})

    async def read() -> bytes:
        async with store.aopen(KEY, [DATA]) as blob:
            return await blob.read()

    for each in (store, made):  # `made` was opened when it could be written to
        assert Path(each.fetch(KEY)).read_bytes() == DATA
        with each.open("a name", [DATA]) as blob:
            assert blob.read() == DATA
        assert len(each.blobs()) == 2
        assert each.check() == each.check(verify=True) == []
        with pytest.raises(StoreUnusable, match=r"read-only|Read-only"):
            each.fetch("missing", [DATA])
        with pytest.raises(BlobNotFound):
            each.open("missing")
        with pytest.raises(StoreUnusable, match="Read-only"):
            each.evict(0)
        with pytest.raises(StoreUnusable, match="Read-only"):
            each.remove(KEY)
    assert asyncio.run(read()) == DATA
    assert (folder / "blobs" / KEY.replace(":", "/")).stat().st_atime_ns == times.st_atime_ns
    assert store.problem() == f"the store is read-only: {folder}"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    (folder / ".shmstream").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert Path(Store(folder).fetch(KEY)).read_bytes() == DATA, "without a mark, too"
    with pytest.raises(StoreUnusable, match="Read-only"):
        Store(disk / "nothing")


TELLS = """
try:
    store = Store(sys.argv[1])
    print(len(store.open('a name').read()))
    print(store.fetch('missing', [b'x']))
except ShmstreamError as error:
    print(error)
"""


@needs_root
def test_a_store_that_root_made_can_be_read_by_users(for_all: Path) -> None:
    """As in an image of a container: its files were copied by root, and the server is a user."""
    folder = for_all / "store"
    make_store(str(folder), {}).fetch("a name", [DATA])
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    told = as_user(1234, 1234, str(folder), TELLS)
    assert told.startswith("1000\n")
    assert "it is read-only" in told
    (folder / "named").chmod(0o777)
    assert "user 0 owns" in as_user(1234, 1234, str(folder), TELLS)
    (folder / "named").chmod(0o700)


@needs_root
def test_the_root_of_a_volume_is_refused_with_advice(for_all: Path) -> None:
    volume = for_all / "volume"
    volume.mkdir()
    volume.chmod(0o755)
    told = as_user(1234, 1234, str(volume), TELLS)
    assert "user 0 owns" in told
    assert "use a subfolder that this user makes" in told
    assert "shared_group" in told


# It belongs to a group.

SHARES = "store = Store(sys.argv[1], shared_group=True, retries=Retries(attempts=1))\n"


@pytest.fixture
def shared(for_all: Path) -> Iterator[str]:
    """The folder of a store that the users of a group share."""
    folder = for_all / "shared"
    make_shared(folder)
    yield str(folder)
    store = Store(folder, shared_group=True)
    assert store.check() == []
    for each in folder.rglob("*"):
        facts = each.stat()
        assert facts.st_gid == GROUP, each
        assert stat.S_IMODE(facts.st_mode) == (0o2770 if each.is_dir() else 0o660), each


@needs_root
def test_users_of_a_group_share_what_is_complete(shared: str) -> None:
    as_user(1001, GROUP, shared, SHARES + f"store.fetch({KEY!r}, [{DATA!r}])")
    as_user(1001, GROUP, shared, SHARES + "store.fetch('a name', [b'x'])")
    told = as_user(
        1002,
        GROUP,
        shared,
        SHARES + f"print(len(store.open({KEY!r}).read()), store.open('a name').read())\n"
        "print(store.check(), store.gc(), len(store.evict(0)))\n"
        "print(store.fetch('another', [b'y']))",
    )
    assert told.splitlines()[:2] == ["1000 b'x'", "[] [] 2"]


@needs_root
def test_a_download_of_one_user_is_waited_for_and_gone_on_with_by_another(
    shared: str, origin: Origin
) -> None:
    origin.serve("/blob", seed=1, size=4 * MIB)
    origin.change("/blob", first=0, count=1, stall_after=2 * MIB)
    key, url = digest(1, 4 * MIB), origin.url("/blob")
    leads = (
        f"b = store.open({key!r}, {url!r}); b.read(1 << 20); print('leads', flush=True)\n"
        "sys.stdin.readline()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", become(1001, GROUP) + SHARES + leads, shared],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "leads\n"
    second = subprocess.Popen(
        [
            sys.executable,
            "-c",
            become(1002, GROUP) + SHARES + f"print(len(store.open({key!r}, {url!r}).read()))",
            shared,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    first.kill()
    first.wait()
    told, _ = second.communicate(timeout=60)
    assert (second.returncode, told) == (0, f"{4 * MIB}\n")
    assert Path(Store(shared, shared_group=True).fetch(key)).read_bytes() == content(1, 4 * MIB)
    first.stdin.close()
    first.stdout.close()


@needs_root
def test_a_folder_that_is_not_a_groups_alone_is_not_shared(for_all: Path) -> None:
    folder = for_all / "shared"
    for mode in (0o700, 0o770, 0o777, 0o2777, 0o3770):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        with pytest.raises(StoreUnusable, match="chmod 2770"):
            Store(folder, shared_group=True)
    folder.chmod(0o2770)
    Store(folder, shared_group=True)
    with pytest.raises(StoreUnusable, match="others may write to"):
        Store(folder)
    folder.chmod(0o2770)
    os.chown(folder, 0, GROUP)
    refused = "try: " + SHARES + "except StoreUnusable as error: print(error)"
    folder.chmod(0o2775)
    assert "which this user is not in" in as_user(1003, 1003, str(folder), refused)


# What others put there.


def fifo(path: str) -> None:
    os.mkfifo(path)


def link(path: str) -> None:
    os.symlink("/etc/passwd", path)


def loop(path: str) -> None:
    os.symlink(path, path)


def a_folder(path: str) -> None:
    os.mkdir(path)


def a_socket(path: str) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path: str) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: reading never ends


def sparse(path: str) -> None:
    with open(path, "wb") as file:
        os.truncate(file.fileno(), 1 << 43)


PLANTED = [fifo, link, loop, a_folder, a_socket, *([device] if os.geteuid() == 0 else [])]


def unplant(path: str) -> None:
    os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def test_what_is_no_file_at_a_partial_files_name(store: Store) -> None:
    for plant in PLANTED:
        for key in (KEY, "a name"):
            path = store._layout.place(key).partial
            plant(path)
            with pytest.raises(StoreUnusable, match="remove it"):
                store.fetch(key, [DATA])
            look_at_all(store, path)
            unplant(path)
            assert Path(store.fetch(key, [DATA])).read_bytes() == DATA
            store.evict(0)


@pytest.mark.parametrize("suffix", [".shmstream-journal", ".shmstream-record", ""])
def test_what_is_no_file_anywhere_else(suffix: str, store: Store) -> None:
    path = store._layout.place("a name").path + suffix
    for plant in PLANTED:
        plant(path)
        expected: dict[str, type[Exception]] = {"": DamagedBlob}
        if plant is a_folder:  # anything else is replaced
            expected[".shmstream-record"] = BlobAborted
        if suffix in expected:
            with pytest.raises(expected[suffix]):
                store.fetch("a name", [DATA])
            wait_until(lambda: store.flights() == [])
        else:
            assert Path(store.fetch("a name", [DATA])).read_bytes() == DATA
            wait_until(lambda: store.flights() == [])
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            look_at_all(store, path)
            unplant(path)
        assert Path(store.fetch("a name", [DATA])).read_bytes() == DATA
        store.evict(0)


def look_at_all(store: Store, path: str) -> None:
    """Each way of looking at the folder ends, and tells of what was planted."""
    assert ("foreign", path) in [(each.kind, each.path) for each in store.check(verify=True)]
    assert path not in [entry.path for _, entry in store.blobs()]
    store.stock(10)
    store.gc(partial_age=0)
    store.evict(0)
    assert os.path.lexists(path)


def test_a_huge_sparse_file(store: Store) -> None:
    """8 TiB of holes: no check reads them, and they count for what they take."""
    path = store._layout.place(KEY).path
    sparse(path)
    for verify in (None, True):
        assert [each.kind for each in store.check(verify=verify)] == ["damaged"]
    assert store.check(verify=False) == []
    careful = make_store(store.folder, {"verify": True, "max_bytes": MIB})
    with pytest.raises(DamagedBlob, match="large holes"):
        careful.open(KEY)
    assert careful.evict() == [], "it takes no space"
    assert Path(careful.fetch(KEY, [DATA])).read_bytes() == DATA
    path = store._layout.place("a name").path
    sparse(path)
    sparse(path + ".shmstream-record")
    assert [each.kind for each in store.check()] == ["unrecorded"]
    assert {key for key, _ in store.blobs()} == {None, KEY}
    assert sorted(store.evict(0)) == sorted([path, store._layout.place(KEY).path])
    sparse(path + ".shmstream-partial")
    sparse(path + ".shmstream-journal")
    assert Path(store.fetch("a name", [DATA])).read_bytes() == DATA


LOOKS = """
store = Store(sys.argv[1])
print([(each.kind, each.detail) for each in store.check()])
print(len(store.gc(partial_age=0)), len(store.blobs()), store.open('a name').read())
"""


@needs_root
def test_what_this_user_cannot_read(for_all: Path) -> None:
    """It is reported, and it keeps no other file from being looked at, or from being removed."""
    folder = for_all / "store"
    folder.mkdir(mode=0o700)
    os.chown(folder, 1234, 1234)
    makes = f"store = Store(sys.argv[1]); store.fetch({KEY!r}, [{DATA!r}])\n"
    makes += "store.fetch('a name', [b'x'])"
    as_user(1234, 1234, str(folder), makes)
    (folder / "blobs" / KEY.replace(":", "/")).chmod(0)
    for number in range(3):
        partial = folder / "named" / (f"{number}" * 64 + ".shmstream-partial")
        partial.touch(0o600)
        if number != 1:
            os.chown(partial, 1234, 1234)
        os.utime(partial, (1000, 1000))
    found, told = as_user(1234, 1234, str(folder), LOOKS).splitlines()
    assert found.count("'it cannot be read: Permission denied'") == 2
    assert told == "2 2 b'x'"


@needs_root
def test_what_cannot_be_removed_is_passed_over(folder: str) -> None:
    """As an immutable file, or here a mount point: the next blob goes in its place."""
    store = make_store(folder, {"max_bytes": 1000})
    first = store.fetch(KEY, [DATA])
    wait_until(lambda: store.flights() == [])
    subprocess.run(["mount", "--bind", "/etc/hostname", first], check=True)
    try:
        os.utime(first, (1000, 1000))
        second, third = (store.fetch(name, [content(1, 700)]) for name in ("second", "third"))
        wait_until(lambda: not os.path.exists(second))
        assert store.evict(0) == [third]
        with pytest.raises(StoreUnusable, match="busy"):
            store.evict(0)
    finally:
        unmount(Path(first))
    assert store.evict(0) == [first]


@needs_root
def test_a_check_of_a_disk_without_space(disk: Path) -> None:
    """It would note the digest of a blob whose leader was killed just before it could."""
    store = make_store(str(disk / "store"), {})
    path = store.fetch("a name", [DATA])
    wait_until(lambda: store.flights() == [])
    record = Record.read(path + ".shmstream-record")
    assert record is not None
    Record("a name", None, record.metadata).write(path + ".shmstream-record")
    with (disk / "full").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert store.check() == []
    (disk / "full").unlink()
    assert store.check() == []
    assert Record.read(path + ".shmstream-record") == record
