"""`shmstream::` over HTTP in several processes: one download, read as it arrives, taken over."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shmstream import Store, sweep
from shmstream.filesystem import ShmstreamFileSystem
from shmstream.sources.origin import Request
from tests.support.filesystems import read_url
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

Start = Callable[..., Interpreter]
ROOT = Path(__file__).parents[2]
SIZE = 3_000_000
TEXT = "name,value\n" + "".join(f"row {number},{number * 7}\n" for number in range(120_000))


def downloads(origin: Origin, path: str) -> list[Request]:
    """The GETs of this path, when they are over."""
    return [each for each in origin.ended(path) if each.method == "GET"]


def test_one_download_for_all_processes(
    origin: Origin, start: Start, options: dict[str, Any], folder: str
) -> None:
    url = origin.serve("/table.csv", text=TEXT)
    origin.change("/table.csv", stall_after=1_000_000)
    readers = [start(read_url, f"shmstream::{url}", options) for _ in range(4)]
    for each in readers:
        each.say("go")
    firsts = [each.hear() for each in readers]  # while the rest is yet to come
    assert [line for line, _ in firsts] == ["name,value\n"] * 4
    assert sorted(role for _, role in firsts) == ["follows"] * 3 + ["leads"]
    origin.release()
    assert [each.hear() for each in readers] == [["read", sha256(TEXT.encode())]] * 4
    for each in readers:
        each.finish()
    assert [(each.status, each.sent) for each in downloads(origin, "/table.csv")] == [
        (200, len(TEXT))
    ]
    assert len(Store(folder).blobs()) == 1


def test_a_large_file_comes_over_several_connections(
    origin: Origin, options: dict[str, Any]
) -> None:
    size = 64 << 20
    url = origin.serve("/large", seed=1, size=size, rate=16 << 20)
    with fsspec.open(f"shmstream::{url}", "rb", **options) as file:
        assert file.read() == content(1, size)
    parts = [each for each in downloads(origin, "/large") if each.sent]
    assert len({each.connection for each in parts}) > 2
    assert sum(each.sent for each in parts) < 1.5 * size


def test_the_leader_is_killed(
    origin: Origin, start: Start, options: dict[str, Any], folder: str
) -> None:
    """Another process goes on at the same offset."""
    url = origin.serve("/table.csv", text=TEXT)
    origin.change("/table.csv", stall_after=1_000_000)
    readers = [start(read_url, f"shmstream::{url}", options) for _ in range(3)]
    for each in readers:
        each.say("go")
    roles = [each.hear()[1] for each in readers]
    store = Store(folder)
    wait_until(lambda: store.flights()[0].published == 1_000_000)
    origin.change("/table.csv", stall_after=None)
    readers.pop(roles.index("leads")).kill()
    assert [each.hear() for each in readers] == [["read", sha256(TEXT.encode())]] * 2
    for each in readers:
        each.finish()
    _, second = downloads(origin, "/table.csv")
    assert second.range == "bytes=1000000-"
    assert second.headers["if-range"] == '"0-0"'
    assert second.sent == len(TEXT) - 1_000_000


def test_a_download_goes_on_after_all_processes_were_killed(
    origin: Origin, start: Start, options: dict[str, Any], folder: str
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=2_000_000)
    reader = start(read_url, f"shmstream::{url}", options)
    reader.say("go")
    reader.hear()
    store = Store(folder)
    wait_until(lambda: store.flights()[0].published == 2_000_000)
    reader.kill()
    origin.change("/blob", stall_after=None)
    with fsspec.open(f"shmstream::{url}", **options) as file:
        assert file.read() == content(1, SIZE)
    assert downloads(origin, "/blob")[-1].range is not None


def test_ranges_wait_only_for_what_they_want(origin: Origin, options: dict[str, Any]) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=1_000_000)
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    data = content(1, SIZE)
    assert system.cat_ranges([path] * 2, [0, 900_000], [10, 900_010]) == [
        data[:10], data[900_000:900_010],
    ]  # fmt: skip
    assert system.cat_file(path, 500, 600) == data[500:600]
    with system.open(path) as file:
        assert (file.size, file.seek(0, os.SEEK_END)) == (SIZE, SIZE)
        file.seek(999_000)
        assert file.read(1_000) == data[999_000:1_000_000]
        assert not file.blob.is_complete
        origin.release()
        assert file.read() == data[1_000_000:]
    assert len(downloads(origin, "/blob")) == 1


@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
def test_a_connection_that_breaks_off(origin: Origin, options: dict[str, Any], fault: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=3, **{fault: 1_000_000})
    with fsspec.open(f"shmstream::{url}", **options) as file:
        assert file.read() == content(1, SIZE)
    assert len(downloads(origin, "/blob")) > 1


@pytest.mark.parametrize(
    "behaviour",
    [
        {"ranges": False},
        {"if_range": False},
        {"etag": None},
        {"etag": 'W/"weak"'},
        {"etag": None, "last_modified": "Sun, 29 Nov 2020 10:44:41 GMT"},
        {"framing": "chunked"},
        {"framing": "close"},
    ],
    ids=str,
)
def test_whatever_a_server_can(
    origin: Origin, options: dict[str, Any], behaviour: dict[str, Any]
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, **behaviour)
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    for _ in range(2):
        assert system.cat_file(path, None, None) == content(1, SIZE)
        assert system.cat_file(path, -10) == content(1, SIZE)[-10:]
    whole = [each for each in downloads(origin, "/blob") if each.sent == SIZE]
    tells = behaviour.get("etag", "auto") or "last_modified" in behaviour
    if "framing" not in behaviour:  # else fsspec asks for the size by a GET that it breaks off
        assert len(whole) == 1 if tells else len(whole) > 0


def test_a_server_that_is_away_is_no_missing_file(origin: Origin, options: dict[str, Any]) -> None:
    url = origin.serve("/blob", seed=1, size=10)
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    origin.refuse()
    with pytest.raises(OSError, match=r"[cC]onnect") as raised:
        system.open(path)
    assert not isinstance(raised.value, FileNotFoundError)
    origin.accept()
    with pytest.raises(FileNotFoundError):
        system.open(origin.url("/nothing"))
    origin.change("/blob", status=403)
    with pytest.raises(PermissionError, match="403"):
        system.open(path)
    del raised


def test_a_forked_child_has_a_target_of_its_own(origin: Origin, options: dict[str, Any]) -> None:
    """The event loop of the parent does not run in the child."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    other = origin.serve("/other", seed=2, size=SIZE)
    data = content(1, SIZE)
    origin.change("/blob", stall_after=1_000_000)
    system, path = fsspec.url_to_fs(f"shmstream::{url}", **options)
    with system.open(path) as file:
        assert file.read(10) == data[:10]
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                right = file.read(100) == data[10:110]
                right &= system.cat_file(other) == content(2, SIZE)
                os.write(writing, b"right" if right else b"wrong")
            finally:
                os._exit(0)
        os.close(writing)
        assert os.read(reading, 10) == b"right"
        os.waitpid(child, 0)
        os.close(reading)
        sweep()  # the child did not end in good order
        origin.release()
        assert file.read() == data[10:]
    assert len(downloads(origin, "/blob")) == 1


def test_the_entry_point(tmp_path: Path) -> None:
    """fsspec finds the protocol of an installed package."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    points = told["project"]["entry-points"]["fsspec.specs"]
    information = tmp_path / "of_shmstream-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: of-shmstream\nVersion: 1\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (information / "entry_points.txt").write_text("\n".join(["[fsspec.specs]", *lines]))
    program = """
import fsspec
fsspec.filesystem("memory").pipe("/x", b"data")
with fsspec.open("shmstream::memory://x") as file:
    print(type(file).__name__, file.read())
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "SHMSTREAM_STORE": str(tmp_path / "store"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("BlobFile b'data'\n", "")
    assert points["shmstream"] == (
        f"{ShmstreamFileSystem.__module__.rpartition('.')[0]}:{ShmstreamFileSystem.__name__}"
    )
