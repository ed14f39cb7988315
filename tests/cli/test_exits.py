"""How commands end: exit codes, errors, signals and closed pipes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.stream import segment
from tests.cli.conftest import BLOB, DIGEST, Begin, Run, Show, flying
from tests.support.commands import PYTHON
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin


def test_a_closed_pipe(begin: Begin, store: Store, origin: Origin, url: str) -> None:
    """The leader ends without a message, and the follower goes on."""
    origin.change("/blob", count=1, stall_after=200_000)
    leader = begin("fetch", url, "-o", "-")
    flying(store)
    follower = begin("fetch", url, "-o", "-")
    flying(store, followers=1)
    assert leader.read(1000) == BLOB[:1000]
    leader.stdout.close()
    origin.release()
    assert leader.process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert leader.stderr.read() == b""
    code, out, _ = follower.finish()
    assert (code, out) == (0, BLOB)
    assert len(origin.requests("/blob")) <= 2


def test_a_closed_pipe_of_a_list(run: Run, url: str) -> None:
    """Closed before it begins: a list is soon written."""
    assert run("fetch", url)[0] == 0
    reading, writing = os.pipe()
    os.close(reading)
    command = [*PYTHON, "-m", "shmstream", "ls", "--json"]
    ls = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
    )
    os.close(writing)
    assert (ls.returncode, ls.stderr) == (141, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle(
    begin: Begin, store: Store, origin: Origin, url: str, number: int, tmp_path: Path
) -> None:
    """The leader leaves no file, and the follower takes over."""
    origin.change("/blob", count=1, stall_after=200_000)
    leader = begin("fetch", url, "--digest", DIGEST, "-o", "out")
    flying(store, published=200_000)
    follower = begin("fetch", url, "--digest", DIGEST)
    flying(store, published=200_000, followers=1)
    leader.process.send_signal(number)
    assert leader.finish() == (128 + number, b"", "")
    assert [each.name for each in tmp_path.iterdir()] == ["store"]
    code, out, told = follower.finish()
    assert code == 0
    assert told.startswith(f"{DIGEST}: leads, ")
    assert Path(out.decode().strip()).read_bytes() == BLOB
    assert [each.range for each in origin.requests("/blob")] == [None, "bytes=200000-"]


def test_ctrl_c_on_a_terminal(show: Show, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    fetch = show("fetch", url)
    fetch.wait_for(r"blob leads")
    flying(store)
    fetch.press(b"\x03")
    assert fetch.finish() == 130
    assert "Error" not in fetch.output
    fetch.check()
    wait_until(lambda: segment.names() == [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fetch"], "Missing argument 'URL'"),
        (["fetch", "http://"], "not a valid http or https URL"),
        (["fetch", "x", "--digest", "sha256:12"], "'sha256:12' looks like a digest, and is none"),
        (["fetch", "x", "--digest", "x"], "'x' is no digest"),
        (["fetch", "x", "--size", "-1"], "'-1' is no size"),
        (["fetch", "x", "--digest", DIGEST, "--key", "a" * 64], "the key is the digest"),
        (["fetch", "x", "--key", "sha256:12"], "sha256 has 64 hex digits"),
        (["fetch", "x", "--max-bytes", "1 bit"], "'1 bit' is no size, such as 1234"),
        (["fetch", "http://x/", "--header", "nothing"], "not of the form 'NAME: VALUE'"),
        (["fetch", "http://x/", "--header", "Range: bytes=1-"], "not a header to set: 'Range'"),
        (["fetch", "x", "--header", "A: b"], "--header goes with an http or https URL"),
        (["fetch", "x", "-o", "."], "'.' is a directory"),
        (["evict"], "Missing option '--max-bytes'"),
        (["gc", "--partial-age", "1y"], "'1y' is no duration, such as 90s"),
        (["top", "--interval", "0"], "0.0 is not in the range"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
        (["land"], "No such command 'land'"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], told: str) -> None:
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert told in errors
    assert "Usage: shmstream" in errors


def test_an_extra_that_is_not_there(store: Store, tmp_path: Path) -> None:  # noqa: ARG001
    program = "import sys; sys.modules['urllib3'] = None; from shmstream.__main__ import main"
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [*PYTHON, "-c", f"{program}; main()", "fetch", "http://127.0.0.1/x"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: an HTTP source needs urllib3: pip install 'shmstream[http]'\n"


def test_an_error_moves_no_cursor(run: Run, url: str) -> None:
    """Whatever text is in it: here the folder's name."""
    code, out, told = run("fetch", url, "--store", "/proc/x\x1b[2J\nforged")
    assert (code, out) == (1, "")
    assert "/proc/x\\x1b[2J\\nforged cannot hold a store" in told
    assert told.count("\n") == 1
