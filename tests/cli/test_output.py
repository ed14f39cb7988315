"""Where `fetch` writes the bytes: files, pipes, devices and standard output."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from shmstream import Store
from tests.cli.conftest import BLOB, DIGEST, Begin, Run
from tests.support.commands import PYTHON
from tests.support.origin import Origin


def test_a_file_is_there_whole(run: Run, url: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run("fetch", url, "-o", "new")[:2] == (0, "")
    finally:
        os.umask(before)
    old = tmp_path / "old"
    old.write_bytes(b"other bytes")
    old.chmod(0o751)
    (tmp_path / "link").symlink_to("old")
    assert run("fetch", url, "-o", "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    for path, mode in ((tmp_path / "new", 0o640), (old, 0o751)):
        assert path.read_bytes() == BLOB
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "new", "old", "store"]


def test_what_is_no_file_stays_what_it_is(begin: Begin, run: Run, url: str, tmp_path: Path) -> None:
    assert run("fetch", url, "-o", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    fetch = begin("fetch", url, "-o", "pipe")
    assert (tmp_path / "pipe").read_bytes() == BLOB
    assert fetch.finish()[0] == 0
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("/no/such/folder/file", "cannot write to '/no/such/folder/file': No such file or"),
        ("/proc/version", "cannot write to '/proc/version': "),
    ],
)
def test_an_output_that_cannot_be(run: Run, url: str, out: str, told: str) -> None:
    code, printed, errors = run("fetch", url, "-o", out, "--quiet")
    assert (code, printed) == (1, "")
    assert errors.startswith(f"Error: {told}")
    assert errors.count("\n") == 1


def test_a_pipe_gets_bytes_as_they_arrive(begin: Begin, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    fetch = begin("fetch", url, "--digest", DIGEST, "-o", "-")
    head = fetch.read(150_000)
    origin.release()
    code, rest, told = fetch.finish()
    assert code == 0
    assert head + rest == BLOB
    assert told.startswith(f"{DIGEST}: leads, 293.0 KiB")


def test_an_output_that_fails_after_the_download_began(store: Store, url: str) -> None:
    # The thread that downloads may be about to connect when the process ends.
    python = " ".join([*PYTHON, "-W ignore::ResourceWarning"])
    command = f"{python} -m shmstream fetch {url} -q"
    for output, told in (
        ("-o /dev/full", "cannot write to '/dev/full': No space left on device"),
        ("-o - >&-", "there is no standard output to write to: it is closed"),
        ("-o - >/dev/full", "cannot write to standard output: No space left on device"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{command} {output}"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")
    assert store.check() == []
