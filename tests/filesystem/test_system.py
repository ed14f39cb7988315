"""`shmstream::` reads as its target does, once per host, and leaves everything else to it."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback
from fsspec.implementations.memory import MemoryFileSystem

from shmstream import DigestMismatch, SourceFailed, Store
from shmstream.filesystem import BlobFile, ShmstreamFileSystem
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

LINES = b"".join(b"line %d\n" % number for number in range(50_000))


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """A target in this process, with a few files."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/d/lines": LINES, "/d/more": b"more", "/d/e/deep": b"deep"})
    memory.pipe("/d/lines.gz", gzip.compress(LINES))
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture
def system(memory: MemoryFileSystem, folder: str) -> ShmstreamFileSystem:
    return ShmstreamFileSystem(fs=memory, store=folder)


def test_a_url_is_read_as_by_the_target(
    memory: MemoryFileSystem, options: dict[str, Any], store: Store
) -> None:
    with fsspec.open("shmstream::memory://d/lines", "rb", **options) as file:
        assert isinstance(file, BlobFile)
        assert file.readline() == b"line 0\n"
        assert next(iter(file)) == b"line 1\n"
        assert (file.tell(), file.size, file.seekable()) == (14, len(LINES), True)
        assert file.seek(-7, io.SEEK_END) == len(LINES) - 7
        assert file.read() == b" 49999\n"
        assert file.seek(5) == 5
        assert file.peek(1)[:1] == b"0"
        assert file.readinto(buffer := bytearray(1_000)) == 1_000
        assert bytes(buffer) == LINES[5:1_005]
        assert file.read(100_000) == LINES[1_005:101_005]
    assert file.closed
    with fsspec.open("shmstream::memory://d/lines", "rt", **options) as text:
        assert text.readlines()[-1] == "line 49999\n"
    with fsspec.open("shmstream::memory://d/lines.gz", "rb", compression="infer", **options) as it:
        assert it.read() == LINES
    assert len(store.blobs()) == 2
    del memory


def test_every_way_to_read_gives_what_the_target_gives(
    memory: MemoryFileSystem, system: ShmstreamFileSystem, tmp_path: Path
) -> None:
    path = "/d/lines"
    for start, end in (
        (None, None), (0, 10), (5, None), (None, 7), (-10, None), (-10, -3), (10, 5), (0, -1),
        (len(LINES) + 5, None), (0, len(LINES) + 5), (3, 3),
    ):  # fmt: skip
        assert system.cat_file(path, start, end) == LINES[start:end], (start, end)
    assert system.cat_ranges([path, "/d/more", path], [1, 0, -3], [4, None, None]) == [
        LINES[1:4], b"more", LINES[-3:],
    ]  # fmt: skip
    assert system.cat_ranges([path, path], 2, 3) == [LINES[2:3]] * 2
    assert system.head(path, 9) == memory.head(path, 9)
    assert system.tail(path, 9) == memory.tail(path, 9)
    assert system.read_block(path, 3, 20, b"\n") == memory.read_block(path, 3, 20, b"\n")
    assert system.read_text("/d/more") == "more"
    assert system.cat("/d/more") == b"more"
    assert system.cat(["/d/more", path]) == {"/d/more": b"more", path: LINES}
    assert system.cat("/d/e", recursive=True, on_error="omit") == {"/d/e/deep": b"deep"}
    system.get("/d", f"{tmp_path}/copy", recursive=True)
    assert (tmp_path / "copy" / "e" / "deep").read_bytes() == b"deep"
    assert (tmp_path / "copy" / "lines").read_bytes() == LINES
    seen = Callback()
    system.get_file(path, str(tmp_path / "new" / "lines"), callback=seen)
    assert (tmp_path / "new" / "lines").read_bytes() == LINES
    assert (seen.size, seen.value) == (len(LINES), len(LINES))
    system.get_file(path, out := io.BytesIO())
    assert out.getvalue() == LINES
    mapper = system.get_mapper("/d")
    assert (sorted(mapper), mapper["more"]) == (["e/deep", "lines", "lines.gz", "more"], b"more")


def test_everything_else_is_the_targets(
    memory: MemoryFileSystem, system: ShmstreamFileSystem
) -> None:
    for prefix in ("", "shmstream::memory:/", "shmstream:/", "memory:/"):
        assert system.ls(f"{prefix}/d", detail=False) == memory.ls("/d", detail=False)
        assert system.info(f"{prefix}/d/more") == memory.info("/d/more")
        assert system.exists(f"{prefix}/d/more")
        assert not system.exists(f"{prefix}/d/nothing")
        assert system.isdir(f"{prefix}/d/e")
        assert system.cat_file(f"{prefix}/d/more") == b"more"
    assert system.glob("shmstream::memory://d/*e*") == memory.glob("/d/*e*")
    assert system.find("/d") == memory.find("/d")
    assert list(system.walk("/d")) == list(memory.walk("/d"))
    assert system.size("/d/more") == 4
    assert system.modified("/d/more") == memory.modified("/d/more")
    assert system.unstrip_protocol("/d/more") == "shmstream::memory:///d/more"
    with system.open("shmstream::memory://d/new", "wb") as file:
        file.write(b"new")
    assert system.cat_file("/d/new") == memory.cat_file("/d/new") == b"new"
    with system.open("/d/new", "at") as text:
        text.write(" words")
    assert system.read_text("/d/new") == "new words"
    system.pipe({"shmstream::memory://d/a": b"a", "/d/b": b"b"})
    system.mv("shmstream::memory://d/a", "shmstream::memory://d/c")
    assert system.cat(["/d/b", "/d/c"]) == {"/d/b": b"b", "/d/c": b"a"}
    system.rm("/d/c")
    assert not memory.exists("/d/c")
    with system.transaction, system.open("/d/t", "wb") as file:
        file.write(b"t")
        assert not memory.exists("/d/t")
    assert memory.cat_file("/d/t") == b"t"
    assert system.store is not None
    assert system.pseudo_dirs is memory.pseudo_dirs  # what only the target has
    with pytest.raises(AttributeError):
        _ = system.nothing


def test_what_is_not_there(system: ShmstreamFileSystem, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        system.open("/d/nothing")
    with pytest.raises(FileNotFoundError):
        system.cat_file("/d/nothing")
    with pytest.raises(IsADirectoryError):
        system.open("/d")
    [good, bad] = system.cat_ranges(["/d/more", "/d/nothing"], 0, 2)
    assert good == b"mo"
    assert isinstance(bad, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        system.cat_ranges(["/d/more", "/d/nothing"], 0, 2, on_error="raise")
    found = system.cat(["/d/more", "/d/nothing"], on_error="return")
    assert isinstance(found["/d/nothing"], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        system.get_file("/d/nothing", str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    system.get_file("/d/e", str(tmp_path / "e"))
    assert (tmp_path / "e").is_dir()


def test_a_changed_file_is_a_new_blob(
    memory: MemoryFileSystem, system: ShmstreamFileSystem, store: Store
) -> None:
    old = system.open("/d/more")
    assert old.read(2) == b"mo"
    old.blob.wait()
    before = system.ukey("/d/more")
    memory.pipe("/d/more", b"less")
    assert system.cat_file("/d/more") == b"less"
    assert system.ukey("/d/more") != before
    assert old.read() == b"re"
    old.close()
    assert len(store.blobs()) == 2


def test_what_is_remembered_for_a_while(memory: MemoryFileSystem, folder: str) -> None:
    asked = []

    class Asked(MemoryFileSystem):  # type: ignore[misc]
        def info(self, path: str, **kwargs: Any) -> Any:
            asked.append(path)
            return super().info(path, **kwargs)

    system = ShmstreamFileSystem(fs=Asked(), store=folder, expiry=3_600)
    assert [system.cat_file("/d/more") for _ in range(3)] == [b"more"] * 3
    told = len(asked)
    memory.pipe("/d/more", b"less")
    assert system.cat_file("/d/more") == b"more"  # as the target was asked not long ago
    assert len(asked) == told
    system.invalidate_cache("/d/more")
    assert system.cat_file("/d/more") == b"less"
    system.pipe_file("/d/more", b"mine")  # what is written here is known here
    assert system.cat_file("/d/more") == b"mine"
    memory.pipe("/d/more", b"anew")
    wait_until(lambda: not system.store.flights())
    system.store.evict(0)
    assert system.cat_file("/d/more") == b"anew"  # a download asks in any case


class Silent(MemoryFileSystem):  # type: ignore[misc]
    """A target that says nothing which changes with the content."""

    def info(self, path: str, **kwargs: Any) -> Any:
        found = super().info(path, **kwargs)
        return {each: found[each] for each in ("name", "size", "type")}


def test_a_target_that_does_not_tell_what_changed(memory: MemoryFileSystem, folder: str) -> None:
    """The blob is used for `expiry` seconds after its download."""
    at_once = ShmstreamFileSystem(fs=Silent(), store=folder)
    assert at_once.cat_file("/d/more") == b"more"
    memory.pipe("/d/more", b"less")
    assert at_once.cat_file("/d/more") == b"less"
    patient = ShmstreamFileSystem(fs=Silent(), store=folder, expiry=3_600)
    memory.pipe("/d/more", b"late")
    assert patient.cat_file("/d/more") == b"less"
    assert patient.ukey("/d/more") == patient.fs.ukey("/d/more")
    assert at_once.cat_file("/d/more") == b"late"
    assert len(patient.store.blobs()) == 1


def test_a_target_with_a_ukey_of_its_own(memory: MemoryFileSystem, folder: str) -> None:
    class Versioned(Silent):
        version = 1

        def ukey(self, path: str) -> str:
            return f"{path} {self.version}"

    target = Versioned()
    system = ShmstreamFileSystem(fs=target, store=folder)
    assert system.cat_file("/d/more") == b"more"
    memory.pipe("/d/more", b"less")
    assert system.cat_file("/d/more") == b"more"
    target.version = 2
    assert system.cat_file("/d/more") == b"less"


def test_a_file_that_changes_while_it_is_opened(
    memory: MemoryFileSystem, system: ShmstreamFileSystem
) -> None:
    """The content that comes has not the key of the content that was asked for."""
    version = system._version("/d/more")
    memory.pipe("/d/more", b"less")
    with system.open_version("/d/more", version) as file:
        with pytest.raises(SourceFailed, match="changed after it was opened: open it again"):
            file.read()
    assert system.cat_file("/d/more") == b"less"


@pytest.mark.parametrize("media_type", [None, "application/octet-stream"])
def test_a_file_of_a_server_is_no_directory(
    media_type: str | None, origin: Origin, options: dict[str, Any]
) -> None:
    """dask asks that; fsspec would read a file without a media type to find links in it."""
    url = origin.serve("/blob", seed=1, size=100_000, media_type=media_type)
    page = origin.serve("/pages", text='<a href="/pages/one">one</a>', media_type="text/html")
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    assert not system.isdir(path)
    assert [each.method for each in origin.requests("/blob")] == ["HEAD"]
    assert system.isdir(f"shmstream::{page}")
    assert not system.isdir(f"{url}-that-is-not-there")


def test_a_digest_that_is_given(origin: Origin, options: dict[str, Any], store: Store) -> None:
    url = origin.serve("/blob", seed=1, size=100_000)
    right = f"sha256:{sha256(content(1, 100_000))}"
    wrong = f"sha256:{sha256(b'')}"
    options["shmstream"]["check"] = right
    with fsspec.open(f"shmstream::{url}", **options) as file:
        assert file.read() == content(1, 100_000)
        assert right in store
    origin.refuse()  # it is here: nobody is asked
    with fsspec.open(f"shmstream::{url}", **options) as file:
        assert file.read(5) == content(1, 100_000)[:5]
    origin.accept()
    options["shmstream"]["check"] = {url: wrong}
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    with pytest.raises(DigestMismatch):
        system.cat_file(path)
    assert wrong not in store
    options["shmstream"]["check"] = "sha256:abc"
    with pytest.raises(ValueError, match="check is sha256: and 64"):
        fsspec.open(f"shmstream::{url}", **options)


def test_options_that_are_refused(folder: str) -> None:
    url = "shmstream::memory://d/more"
    with pytest.raises(TypeError, match=r"no option anon; .* under its protocol, such as memory="):
        fsspec.open(url, anon=True)
    for expiry in (-1, "soon", float("nan"), None, -(10**400)):
        with pytest.raises(ValueError, match="expiry is a number of seconds"):
            fsspec.open(url, shmstream={"store": folder, "expiry": expiry})
    with pytest.raises(ValueError, match="one target"):
        ShmstreamFileSystem(store=folder)
    system = ShmstreamFileSystem("memory", store=folder)
    with pytest.raises(TypeError, match="without the option version_id"):
        system.open("/d/more", version_id="1")


def test_what_is_pickled_opens_itself_again(
    memory: MemoryFileSystem, folder: str, options: dict[str, Any]
) -> None:
    system, path = fsspec.url_to_fs("shmstream::memory://d/lines", **options)
    again = pickle.loads(pickle.dumps(system))
    assert again == system
    assert hash(again) == hash(system)
    assert system != ShmstreamFileSystem("memory", store=folder, expiry=5)
    lazy = pickle.loads(pickle.dumps(fsspec.open("shmstream::memory://d/lines", **options)))
    with lazy as file:
        assert file.read() == LINES
    with system.open(path) as file:
        file.read(7)
        with pickle.loads(pickle.dumps(file)) as other:
            assert (other.tell(), other.readline()) == (7, b"line 1\n")
        memory.pipe("/d/lines", b"others")
        with pickle.loads(pickle.dumps(file)) as other:  # the same content, which is here
            assert other.readline() == b"line 1\n"


def test_local_paths_and_many_files(memory: MemoryFileSystem, options: dict[str, Any]) -> None:
    """As fsspec's own caches: the files are whole, and lie on the disk."""
    path = fsspec.open_local("shmstream::memory://d/lines", **options)
    assert Path(path).read_bytes() == LINES
    with fsspec.open_files("shmstream::memory://d/l*", "rb", **options) as files:
        assert [file.read() for file in files] == [LINES, memory.cat_file("/d/lines.gz")]
        assert all(file.blob.is_complete for file in files)
    with fsspec.open_files("shmstream::memory://out/*.txt", "wt", num=2, **options) as files:
        for file in files:
            file.write("x")
    assert memory.cat(["/out/0.txt", "/out/1.txt"]) == {"/out/0.txt": b"x", "/out/1.txt": b"x"}


def test_chains(tmp_path: Path, options: dict[str, Any]) -> None:
    """In front of another chain, and inside one."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner", LINES)
    outside = f"shmstream::zip://inner::file://{tmp_path}/a.zip"
    inside = f"zip://inner::shmstream::file://{tmp_path}/a.zip"
    for url in (outside, inside):
        system, path = fsspec.url_to_fs(url, skip_instance_cache=True, **options)
        assert system.cat_file(path) == LINES
        getattr(system, "close", lambda: None)()
        del system


def test_two_targets_are_told_apart(tmp_path: Path, folder: str) -> None:
    """They have files of the same path, time and size."""
    for name, data in (("a.zip", b"1111"), ("b.zip", b"2222")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(zipfile.ZipInfo("inner"), data)
    for name, data in (("a.zip", b"1111"), ("b.zip", b"2222")):
        for fo in (str(tmp_path / name), io.BytesIO((tmp_path / name).read_bytes())):
            target = fsspec.filesystem("zip", fo=fo, skip_instance_cache=True)
            system = ShmstreamFileSystem(fs=target, store=folder, skip_instance_cache=True)
            assert system.cat_file("inner") == data
            target.close()


def test_keys_have_no_credentials_in_them(memory: MemoryFileSystem, folder: str) -> None:
    def key(**target: Any) -> str:
        system = ShmstreamFileSystem("memory", target_options=target, store=folder)
        return system._version("/d/more").key

    assert key() == key(secret="a", client_kwargs={"headers": {"Authorization": "b"}})
    assert key(client_kwargs={"endpoint_url": "a"}) != key(client_kwargs={"endpoint_url": "b"})
    assert key().startswith("memory:///d/more ")
    assert key(hook=object()) != key()  # nobody can know what it does
    del memory
