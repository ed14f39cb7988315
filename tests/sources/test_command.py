"""Commands and processes as sources: what they wrote counts only if they succeed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from shmstream import SourceError, SourceFailed, Store
from shmstream.sources import CommandSource, ProcessSource, as_sources
from tests.support.feeds import BLOB, SIZE, everything, fails, fails_to_open, read
from tests.support.interpreters import wait_until

if TYPE_CHECKING:
    from subprocess import Popen


def shell(script: str) -> CommandSource:
    return CommandSource(["sh", "-c", script])


def test_the_output_of_a_command(path: Path) -> None:
    source = CommandSource(["cat", path])
    feed = source.open(1000, "a validator")
    assert (feed.offset, feed.size, feed.validator) == (0, None, None)
    assert everything(feed) == BLOB
    assert read(source) == BLOB, "it can be started again"
    assert source.name == "<cat>"
    assert str(path) not in repr(source)
    assert read(CommandSource(["pwd"], cwd=path.parent)) == f"{path.parent}\n".encode()
    assert read(CommandSource(["sh", "-c", "echo $A"], env={"A": "b"})) == b"b\n"
    assert read(shell("cat")) == b"", "it has no standard input"


@pytest.mark.parametrize(
    ("script", "reason", "retryable"),
    [
        ("printf some; exit 3", "it ended with exit code 3", False),
        ("printf some; echo first >&2; echo 'no disk' >&2; exit 1", "1: first | no disk", False),
        ("printf some; printf 'a\\033[2J\\rb\\tc' >&2; exit 1", r"1: a\x1b[2J | b\tc", False),
        ("printf some; kill -9 $$", "SIGKILL ended it", True),
        ("printf some; exec >&-; sleep 0.05; echo late >&2; exit 7", "code 7: late", False),
        ("printf some; sleep 1000 & exit 9", "it ended with exit code 9", False),
        ("printf some; head -c 300000 /dev/zero >&2; exit 1", "it ended with exit code 1: ", False),
    ],
)
def test_a_command_that_fails(script: str, reason: str, retryable: bool) -> None:
    got, error = fails(shell(script))
    assert got == b"some"
    assert reason in error.reason
    assert len(error.reason) < 1000
    assert error.retryable == retryable
    assert error.source == "<sh>"


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    for program in ("no-such-program-anywhere", str(tmp_path / "text"), "a\0b", "/"):
        assert not fails_to_open(CommandSource([program])).retryable
    for mistake in ("ls -l", b"ls", [5], 5):
        with pytest.raises(TypeError):
            CommandSource(mistake)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least the name"):
        CommandSource([])


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "])
def test_closing_ends_the_whole_group(trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the processes that the command has started, and if they ignore SIGTERM."""
    monkeypatch.setattr("shmstream.sources.command._GRACE", 0.1)
    feed = shell(f"{trap}sleep 1000 & echo $!; wait; wait").open()
    inner = int(bytes(next(feed.data)))
    outer = psutil.Process(inner).parent()
    assert outer is not None
    errors: list[SourceError] = []

    def wait() -> None:
        with pytest.raises(SourceError) as caught:
            next(feed.data)
        errors.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    feed.close()
    waiting.join()
    assert len(errors) == 1
    wait_until(lambda: not psutil.pid_exists(inner))
    assert not outer.is_running()
    feed.close()


def test_an_exit_code_that_nobody_knows() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        got, error = fails(shell("printf some"))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (got, error.retryable) == (b"some", False)
    assert "its exit code is not known" in error.reason


# A process that runs.


@pytest.fixture
def begun() -> Iterator[list[Popen[bytes]]]:
    """Processes that the test has begun."""
    processes: list[Popen[bytes]] = []
    yield processes
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def begin(processes: list[Popen[bytes]], script: str) -> Popen[bytes]:
    processes.append(subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE))
    return processes[-1]


def test_a_process_that_runs(begun: list[Popen[bytes]], path: Path) -> None:
    [source] = as_sources(begin(begun, f"cat {path}"))
    assert isinstance(source, ProcessSource)
    assert source.name == "<sh>"
    assert read(source, 1000) == BLOB
    assert "only once" in fails_to_open(source).reason
    assert begun[0].wait() == 0


def test_a_process_that_fails(begun: list[Popen[bytes]]) -> None:
    for script, reason in (
        ("printf some; exit 3", "it ended with exit code 3"),
        ("printf some; kill -9 $$", "SIGKILL ended it"),
        ("printf some; exec >&-; sleep 0.05; exit 7", "code 7"),
    ):
        got, error = fails(as_sources(begin(begun, script))[0])
        assert (got, error.retryable) == (b"some", False)
        assert reason in error.reason
    known = begin(begun, "printf some; exit 4")
    known.wait()  # its caller has waited for it
    assert "code 4" in fails(ProcessSource(known))[1].reason
    taken = begin(begun, "printf some; exit 4")
    os.waitpid(taken.pid, 0)
    assert "not known" in fails(ProcessSource(taken))[1].reason


def test_what_is_no_process_with_output(begun: list[Popen[bytes]]) -> None:
    with subprocess.Popen(["true"]) as silent, pytest.raises(ValueError, match="stdout="):
        as_sources(silent)
    with subprocess.Popen(["true"], stdout=subprocess.PIPE, text=True) as told:
        with pytest.raises(TypeError, match="text"):
            as_sources(told)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Popen"):
        ProcessSource(begin(begun, "true").stdout)  # type: ignore[arg-type]


# In a store.


def test_half_an_output_is_no_blob(store: Store, begun: list[Popen[bytes]], path: Path) -> None:
    script = f"head -c 200000 {path}; exit 1"
    for source in (shell(script), begin(begun, script)):
        with pytest.raises(SourceFailed, match="it ended with exit code 1"):
            store.fetch("output", source)
        assert "output" not in store
    assert Path(store.fetch("output", shell(f"cat {path}"))).read_bytes() == BLOB


def test_a_killed_command_is_started_again(store: Store, path: Path, tmp_path: Path) -> None:
    """What comes again is compared with what was there, and the rest goes on."""
    once = f"if mkdir {tmp_path}/seen; then head -c 200000 {path}; kill -9 $$; fi; cat {path}"
    with store.open("output", shell(once)) as blob:
        assert blob.read() == BLOB
        assert blob.size == SIZE


def test_the_command_ends_with_the_process_that_leads(folder: str) -> None:
    program = (
        "import sys; from shmstream import CommandSource, Store\n"
        "command = CommandSource(['sh', '-c', 'echo $$; exec sleep 1000'])\n"
        "print(Store(sys.argv[1]).open('output', command).read1().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not psutil.pid_exists(int(done.stdout))
