"""A store in everyday life: its folder, pins, names outside of it, several blobs, bars."""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmstream import (
    BlobAborted,
    BlobNotFound,
    FlightInfo,
    Progress,
    SourceFailed,
    Store,
    StoreUnusable,
)
from shmstream.storage import placing
from shmstream.storage.placing import place_file
from tests.support import flights
from tests.support.flights import make_store
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

SIZE = 200_000
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
ROOT = Path(__file__).parents[1]
Start = Callable[..., Interpreter]


# The folder.


def test_a_store_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SHMSTREAM_STORE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    store = Store()
    assert store.folder == str(tmp_path / ".cache/shmstream")
    assert store.max_bytes is None
    monkeypatch.setenv("SHMSTREAM_STORE", "~/blobs")
    monkeypatch.setenv("SHMSTREAM_MAX_BYTES", "10MiB")
    store = Store()
    assert (store.folder, store.max_bytes) == (str(tmp_path / "blobs"), 10 << 20)
    assert Store(max_bytes="1MiB").max_bytes == 1 << 20
    assert Store(tmp_path / "another").max_bytes is None  # it is not the store of the environment
    monkeypatch.setenv("SHMSTREAM_SHARED_GROUP", "yes")
    with pytest.raises(StoreUnusable, match="2770"):
        Store()
    monkeypatch.setenv("SHMSTREAM_SHARED_GROUP", "0")
    monkeypatch.setenv("SHMSTREAM_MAX_BYTES", "a lot")
    with pytest.raises(ValueError, match="a lot"):
        Store()


# Pins.


def test_a_pinned_blob_stays(folder: str) -> None:
    store = make_store(folder, {"max_bytes": 500_000})
    store.pin("first")  # before it is there
    store.pin("first")
    for key in ("first", "second", "third"):
        store.fetch(key, [DATA])
    wait_until(lambda: [key for key, _ in store.blobs()] == ["first", "third"])
    assert [entry.is_pinned for _, entry in store.blobs()] == [True, False]
    assert store.evict(0) == [store.path("third")]
    assert store.is_pinned("first")
    assert store.gc() == []
    assert store.unpin("first")
    assert not store.unpin("first")
    assert store.evict(0) == [store.path("first")]


def test_what_is_pinned_just_now_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at all blobs and the removal of this one."""
    store.fetch("a", [DATA])
    look = type(store._upkeep)._entries

    def look_and_pin(upkeep: Any) -> Any:
        found = look(upkeep)
        store.pin("a")
        return found

    monkeypatch.setattr(type(store._upkeep), "_entries", look_and_pin)
    assert store.evict(0) == []
    monkeypatch.undo()
    assert store.remove("a"), "an order to remove it counts"
    assert not store.is_pinned("a")


def test_pins_of_a_read_only_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store._layout), "is_read_only", True)
    with pytest.raises(StoreUnusable, match="read-only"):
        store.pin("a")


# Where a blob came from.


def test_sources_are_told(store: Store, tmp_path: Path, origin: Origin) -> None:
    (tmp_path / "file").write_bytes(DATA)
    url = origin.serve("/blob?token=secret", seed=1, size=SIZE)
    store.fetch(KEY, url)
    store.fetch("file", [tmp_path / "none", tmp_path / "file"])
    with store.create("report") as blob:
        blob.write(DATA)
    told = {key: entry.source for key, entry in store.blobs()}
    shown = url.replace("secret", "***")
    assert told == {KEY: shown, "file": str(tmp_path / "file"), "report": None}
    assert store.check(verify=None) == []


# Cancelling.


@pytest.fixture
def silent(origin: Origin) -> str:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=100_000)
    return url


def test_a_url_that_is_only_the_key(store: Store) -> None:
    with pytest.raises(BlobNotFound, match="give the URL as the source, too"):
        store.fetch("https://host/model.bin")
    with pytest.raises(BlobNotFound, match=r"to get it from$"):
        store.fetch("model.bin")


@pytest.mark.parametrize("key", [KEY, "a name"])
def test_a_flight_of_another_process(key: str, start: Start, store: Store, silent: str) -> None:
    leader = start(flights.read_in_steps, store.folder, key, silent, None)
    assert leader.hear()["role"] == "leads"
    follower = start(flights.read_in_steps, store.folder, key, silent, None)
    assert follower.hear()["role"] == "follows"
    for each in (leader, follower):
        each.say(10)
        each.hear()
    assert store.cancel(key)
    for each in (leader, follower):
        each.say(150_000)
        got = each.hear()
        assert got["error"] == "BlobAborted"
        assert "it was cancelled" in got["text"]
        each.say(None)
        each.finish()
    assert not store.cancel(key)
    assert list(Path(store.folder).rglob("*.shmstream-*")) == []


def test_a_flight_of_this_process(store: Store) -> None:
    gate = threading.Event()

    def arriving() -> Iterator[bytes]:
        yield DATA[:100_000]
        gate.wait(PATIENCE)

    async def read() -> None:
        async with store.aopen("a name") as blob:
            await blob.read()

    try:
        with store.open("a name", arriving()) as blob:
            blob.read(10)
            assert store.cancel("a name")
            with pytest.raises(BlobAborted, match=r"'a name'.*it was cancelled"):
                blob.read()
            with pytest.raises(BlobNotFound):
                asyncio.run(read())
    finally:
        gate.set()


def test_a_producer_is_cancelled(store: Store) -> None:
    with pytest.raises(BlobAborted, match=r"'report'.*it was cancelled"):
        with store.create("report") as blob:
            blob.write(DATA)
            assert store.cancel("report")
            with pytest.raises(BlobAborted, match="it was cancelled"):
                blob.write(DATA)
    assert "report" not in store


def test_what_was_kept_is_removed(start: Start, store: Store, silent: str) -> None:
    leader = start(flights.read_in_steps, store.folder, "a name", silent, None)
    leader.hear()
    leader.say(10)
    leader.hear()
    leader.kill()
    assert store.cancel("a name")
    for fresh in Path(store.folder).rglob("*.shmstream-journal.*"):
        os.utime(fresh, (0, 0))  # it was killed while it wrote its journal: `gc` keeps it a minute
    store.gc()
    assert list(Path(store.folder).rglob("*.shmstream-*")) == []
    assert not store.cancel("a name")
    store.fetch("a name", [DATA])
    assert not store.cancel("a name"), "a complete blob is no flight"
    assert "a name" in store


# Names outside of the store.


def test_a_name_for_a_blob(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    for _ in range(2):  # also if it is there already, and leads to the same file
        assert store.fetch(KEY, [DATA], link=target) == str(target)
        assert target.read_bytes() == DATA
    assert store.remove(KEY)
    assert target.read_bytes() == DATA
    target.write_bytes(b"old")
    assert store.fetch(KEY, [DATA], link=str(target)) == str(target)
    assert target.read_bytes() == DATA
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.safetensors", "store"]
    assert store.check() == []
    with pytest.raises(IsADirectoryError):
        store.fetch(KEY, link=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        store.fetch(KEY, link=tmp_path / "nowhere" / "file")


def test_how_it_gets_the_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.fetch(KEY, [DATA])
    target = tmp_path / "file"
    link = tmp_path / "link"
    link.symlink_to(target)
    with open(path, "rb") as blob:
        how = place_file(blob.fileno(), str(link))
        assert how in ("reflink", "hard link")
        assert link.is_symlink()
        assert target.samefile(path) == (how == "hard link")
        for name in ("_clone", "_link"):
            monkeypatch.setattr(placing, name, _refuse)
        assert place_file(blob.fileno(), target) == "copy"
        assert not target.samefile(path)
        assert target.read_bytes() == DATA
        mask = os.umask(0)
        os.umask(mask)
        assert target.stat().st_mode & 0o777 == 0o666 & ~mask
        monkeypatch.undo()
        os.unlink(path)  # evicted meanwhile
        assert place_file(blob.fileno(), target) in ("reflink", "copy")
        assert target.read_bytes() == DATA


def _refuse(_fd: int, _path: str) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_a_reflink_where_there_are_some(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(fresh: int, request: int, fd: int) -> None:
        assert request == 0x40049409  # FICLONE of linux/fs.h
        os.sendfile(fresh, fd, 0, SIZE)

    with open(store.fetch(KEY, [DATA]), "rb") as blob:
        monkeypatch.setattr(fcntl, "ioctl", clone)
        assert place_file(blob.fileno(), tmp_path / "file") == "reflink"
        monkeypatch.undo()
    assert not (tmp_path / "file").samefile(store.path(KEY))
    assert (tmp_path / "file").read_bytes() == DATA


# Several blobs.


def test_many_at_once(store: Store) -> None:
    contents = {f"key {number}": content(number, 1000) for number in range(20)}
    at_once = 0

    def counted(data: bytes) -> Iterator[bytes]:
        nonlocal at_once
        at_once = max(at_once, len(store.flights()))
        yield data

    told: list[Progress] = []
    paths = store.fetch_many(
        {key: counted(data) for key, data in contents.items()}, at_once=3, progress=told.append
    )
    assert {key: Path(path).read_bytes() for key, path in paths.items()} == contents
    assert list(paths) == list(contents)
    assert 1 <= at_once <= 3
    assert {each.key for each in told} == set(contents)
    assert store.fetch_many(dict.fromkeys(contents)) == paths
    assert store.fetch_many({}) == {}
    with pytest.raises(ValueError, match="at_once"):
        store.fetch_many({}, at_once=0)


def test_one_that_fails(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="none"):
        store.fetch_many({"a": [DATA], "b": tmp_path / "none", "c": [DATA]}, at_once=2)
    wait_until(lambda: "a" in store)
    with pytest.raises(BlobNotFound):
        store.snapshot(tmp_path / "folder", {"x.bin": ("unknown", None)})


def test_a_snapshot(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    files: dict[str, Any] = {
        "weights/a.bin": (KEY, [DATA]),
        "weights/b.bin": ("b", [DATA[::-1]]),
        "again.bin": (KEY, None),
        "Bücher.txt": ("empty", [b""]),
    }
    for _ in range(2):
        assert store.snapshot(folder, files) == str(folder)
        found = {
            str(each.relative_to(folder)): each.read_bytes()
            for each in folder.rglob("*")
            if each.is_file()
        }
        assert found == {
            "weights/a.bin": DATA,
            "weights/b.bin": DATA[::-1],
            "again.bin": DATA,
            "Bücher.txt": b"",
        }
        (folder / "weights/a.bin").unlink()
    for wrong in ("", "/a", "../a", "a/../../b", "a//b", ".", "a/", "a\0b"):
        with pytest.raises(ValueError, match="no name of a file"):
            store.snapshot(folder, {wrong: (KEY, None)})


# Bars.


@pytest.fixture
def no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "tqdm")


def _hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] in hidden:
            raise ImportError(f"no {name}")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.fixture
def quiet_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # else a thread of it stays


@pytest.mark.usefixtures("quiet_tqdm")
def test_a_bar_by_tqdm(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    store.fetch("https://host/model.bin", [DATA], progress=True)
    told = capfd.readouterr().err
    assert "model.bin: 100%" in told
    assert "195k/195k" in told
    store.fetch_many({"a": [DATA], "b": [DATA]}, progress=True)
    assert "2 blobs: 100%" in capfd.readouterr().err
    with store.open("c", [DATA], progress=True) as blob:
        blob.read()
    assert "c: 100%" in capfd.readouterr().err
    with pytest.raises(BlobNotFound):
        store.fetch("absent", progress=True)

    async def read() -> None:
        async with store.aopen("d", [DATA], progress=True) as blob:
            await blob.wait()

    asyncio.run(read())
    assert "d: 100%" in capfd.readouterr().err


def test_a_bar_that_the_user_has_disabled(store: Store) -> None:
    """tqdm reads TQDM_DISABLE when it is imported."""
    program = f"""
from shmstream import Store
store = Store({store.folder!r})
store.fetch("a", [b"x"], progress=True)
store.fetch_many({{"b": [b"x"], "c": [b"x"]}}, progress=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.timeout(300)
def test_a_bar_in_a_notebook(store: Store, origin: Origin, tmp_path: Path) -> None:
    """A real notebook, run by nbclient: the widget is as long as the blob, and it is full."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    cells = [
        f"from shmstream import Store; store = Store({store.folder!r})",
        f"path = store.fetch({url!r}, {url!r}, progress=True)",
        f"paths = store.fetch_many({{'a': {url!r}, 'b': [b'x' * 1000]}}, progress=True)",
        "import os; print(os.path.getsize(path), len(paths))",
    ]
    cell: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": []}
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 4,
        "metadata": {},
        "cells": [{**cell, "execution_count": None, "source": each} for each in cells],
    }
    (tmp_path / "cells.ipynb").write_text(json.dumps(notebook))
    run = "from nbclient.cli import main; main()"
    told = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", run, "--inplace", "--timeout=-1", "cells.ipynb"],
        cwd=tmp_path,
        env=told,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ran = json.loads((tmp_path / "cells.ipynb").read_text())
    assert "".join(ran["cells"][-1]["outputs"][0]["text"]) == f"{SIZE} 2\n"
    [states] = ran["metadata"]["widgets"].values()
    bars = [each["state"] for each in states["state"].values() if "Progress" in each["model_name"]]
    lengths = [
        (each["max"], each["value"]) for each in bars if each["_view_name"] == "ProgressView"
    ]
    assert sorted(lengths) == [(SIZE, SIZE), (SIZE + 1000, SIZE + 1000)]


@pytest.mark.usefixtures("no_tqdm")
def test_a_bar_by_rich(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    store.fetch("https://host/model.bin", [DATA], progress=True)
    told = capfd.readouterr().err
    assert "model.bin" in told
    assert re.search(r"195.3/195.3 KiB", told)


def test_no_bar_and_no_listener(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "tqdm", "rich")
    with pytest.raises(ImportError, match="pip install tqdm"):
        store.fetch("a", [DATA], progress=True)
    monkeypatch.undo()
    store.fetch("a", [DATA], progress=False)
    with pytest.raises(TypeError, match="True for a bar"):
        store.open("a", progress="yes")  # type: ignore[arg-type]
    assert not store.is_in_flight("a")


def test_a_listener_of_a_task(store: Store) -> None:
    told: list[Progress] = []

    def arriving() -> Iterator[bytes]:
        for start in range(0, SIZE, 50_000):
            yield DATA[start : start + 50_000]
            time.sleep(0.06)  # a slow source

    async def main() -> None:
        async with store.aopen("a", arriving(), progress=told.append) as blob:
            assert sha256(await blob.read()) == sha256(DATA)
        async with store.aopen("a", progress=told.append) as blob:
            await blob.wait()

    asyncio.run(main())
    assert [each.published for each in told] == sorted(each.published for each in told)
    assert told[-1].published == told[-1].size == SIZE
    assert 2 <= len(told) <= 8


def test_a_flight_has_a_key(store: Store) -> None:
    with store.create("report"):
        [flight] = store.flights()
        assert isinstance(flight, FlightInfo)
        assert flight.key == "report"
