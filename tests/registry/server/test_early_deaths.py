"""Workers that die at once, again and again. Forks of a real server, real signals."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.registry.server.test_starting import are_forks
from tests.support.interpreters import wait_until
from tests.support.kept import all_serve
from tests.support.serving import Serve, Serving

CUSTOM = """
import os

def begin():
    if os.path.exists({fault!r}):
        with open({fault!r}) as file:
            exec(file.read())

os.register_at_fork(after_in_child=begin)
"""
BROKEN = """
from shmstream.registry.server import worker

def make(settings):
    raise ValueError("the application is broken")

worker._registry = make
"""
UNLIVED = """
from shmstream.registry.server import worker
from shmstream.registry.application import Application

class Broken(Application):
    async def __call__(self, scope, receive, send):
        raise ValueError("the application is broken")

worker._registry = Broken
"""
PATIENT = "from shmstream.registry.server import supervisor\nsupervisor.{name} = 0.0\n"
ENDING = """
from shmstream.registry import application

real = application.Application.__call__

async def call(self, scope, receive, send):
    if scope.get("path") == "/end":
        {statement}
    await real(self, scope, receive, send)

application.Application.__call__ = call
import asyncio, sys
"""
NOTING = """
import threading

def note():
    names = [each.name for each in threading.enumerate()]
    with open({notes!r}, "a") as file:
        print(len(os.listdir("/proc/self/task")), *sorted(names), file=file)

os.register_at_fork(before=note)
"""


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    """As long as this file exists, forked workers begin with the code in it."""
    file = tmp_path / "fault"
    (tmp_path / "sitecustomize.py").write_text(CUSTOM.format(fault=str(file)))
    return file


def customize(tmp_path: Path, code: str) -> None:
    """Have the server run this as well when it starts."""
    with (tmp_path / "sitecustomize.py").open("a") as file:
        file.write(code)


def put(fault: Path, code: str) -> None:
    """Have all workers that are forked from now on begin with this."""
    new = fault.with_suffix(".new")
    new.write_text(code)
    new.rename(fault)


def pauses(serving: Serving) -> list[float]:
    """The pauses after the deaths of workers, as the log tells them."""
    found = re.findall(r"died .*; another one replaces it(?: in (\S+) s)?\n", serving.log)
    return [float(each or 0) for each in found]


def kill_all(serving: Serving) -> None:
    for each in serving.workers():
        os.kill(each, signal.SIGKILL)


def grow(serving: Serving, until: float) -> list[float]:
    """Wait for a pause of that length, and check that there are no more deaths than that takes."""
    wait_until(lambda: max(pauses(serving), default=0) >= until)
    found = pauses(serving)
    assert found == sorted(found)
    assert 0 < len(found) <= 12, found
    return found


def recover(serving: Serving, count: int, keep: str = "--keep") -> None:
    """The cause is gone: a request that comes in a pause waits for a worker."""
    assert serving.ask("/healthz").body == b"alive\n"
    wait_until(lambda: are_there(serving, count, keep))
    assert are_forks(serving)


def are_there(serving: Serving, count: int, keep: str) -> bool:
    """Whether so many workers run, and serve."""
    if keep == "--keep":
        return all_serve(serving, count)
    return len(serving.workers()) == count and serving.ask("/healthz").body == b"alive\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os._exit(7)", "with exit code 7"),
        ("os._exit(0)", "with exit code 0"),
        ("os.kill(os.getpid(), 9)", "by SIGKILL"),
        ("os.kill(os.getpid(), 11)", "by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "by signal 40"),
    ],
)
@pytest.mark.parametrize("keep", ["--keep", "--no-keep"])
def test_workers_that_die_at_once(
    code: str, told: str, keep: str, fault: Path, serve: Serve
) -> None:
    """The pauses between them grow. When the cause is gone, it serves again."""
    serving = serve("--workers", "2", keep)
    wait_until(lambda: are_there(serving, 2, keep))
    put(fault, code)
    kill_all(serving)
    grow(serving, until=1.6)
    assert serving.log.count(f"died {told}; another one replaces it") >= 4
    fault.unlink()
    recover(serving, 2, keep)
    assert len(pauses(serving)) <= 14
    assert serving.stop() == 0


def test_it_stops_in_a_pause(fault: Path, serve: Serve) -> None:
    serving = serve("--workers", "1")
    wait_until(lambda: all_serve(serving, 1))
    put(fault, "os._exit(7)")
    kill_all(serving)
    grow(serving, until=6.4)
    assert serving.workers() == []
    assert serving.stop() == 0


def test_an_application_that_raises(fault: Path, tmp_path: Path) -> None:
    """Each worker tells why, with the traceback."""
    with closing(Serving(tmp_path, "--workers", "2")) as serving:
        wait_until(lambda: all_serve(serving, 2))
        put(fault, BROKEN)
        kill_all(serving)
        found = grow(serving, until=1.6)
        assert serving.log.count("ValueError: the application is broken") >= len(found) - 2
        fault.unlink()
        recover(serving, 2)


def test_an_application_that_cannot_start(fault: Path, tmp_path: Path) -> None:
    """The server ends with 1, as nothing else would help."""
    with closing(Serving(tmp_path, "--workers", "2")) as serving:
        wait_until(lambda: all_serve(serving, 2))
        put(fault, UNLIVED)
        kill_all(serving)
        assert serving.process.wait(60) == 1
        assert "ValueError: the application is broken" in serving.log
        assert "SystemExit" not in serving.log


def test_workers_that_are_killed_as_soon_as_they_serve(fault: Path, serve: Serve) -> None:
    """They are not at fault, so many of them are replaced at once; but not all for ever."""
    serving = serve("--workers", "1")
    for _ in range(60):
        assert serving.ask("/healthz").body == b"alive\n"
        kill_all(serving)
    wait_until(lambda: len(pauses(serving)) == 60)
    found = pauses(serving)
    assert found[:40] == [0.0] * 40
    assert found[-1] > 0.0
    recover(serving, 1)
    assert not fault.exists()


CALLBACK = "asyncio.get_running_loop().call_soon(sys.exit, 5)"


@pytest.mark.parametrize(("statement", "code", "deaths"), [("os._exit(3)", 3, 5), (CALLBACK, 5, 1)])
def test_an_application_that_ends_its_worker(
    statement: str, code: int, deaths: int, fault: Path, tmp_path: Path
) -> None:
    """It has served before, so another one is started; also if 3 says that it cannot start."""
    customize(tmp_path, ENDING.format(statement=statement) + PATIENT.format(name="_SHORT_LIFE"))
    serving = Serving(tmp_path, "--workers", "1")
    try:
        wait_until(lambda: all_serve(serving, 1))
        connection = serving.connect()
        connection.request("GET", "/end")
        wait_until(lambda: serving.log.count(f"died with exit code {code}") == deaths)
        connection.close()
        recover(serving, 1)
    finally:
        serving.close()  # its log may have tracebacks
    assert not fault.exists()


def test_a_worker_that_hangs_before_it_serves(fault: Path, tmp_path: Path, serve: Serve) -> None:
    customize(tmp_path, PATIENT.format(name="_LONGEST_START"))
    serving = serve("--workers", "1", "--stuck-after", "5s")
    wait_until(lambda: all_serve(serving, 1))
    put(fault, "import time; time.sleep(100_000)")
    kill_all(serving)
    wait_until(lambda: "has made no progress" in serving.log)
    fault.unlink()
    recover(serving, 1)


def test_a_worker_of_another_version(fault: Path, tmp_path: Path, serve: Serve) -> None:
    """It tells nothing in the table of the server, and so it never counts as stuck."""
    customize(tmp_path, PATIENT.format(name="_LONGEST_START"))
    serving = serve("--workers", "1", "--stuck-after", "1s")
    wait_until(lambda: all_serve(serving, 1))
    old = serving.workers()
    upgrade = "from shmstream.registry.server import connections\nconnections.VERSION += 1\n"
    (tmp_path / "sitecustomize.py").write_text(upgrade)
    serving.process.send_signal(signal.SIGHUP)
    worker: list[int] = []

    def is_replaced() -> bool:
        worker[:] = serving.workers()  # for a while, the old one and the new one
        return len(worker) == 1 and worker != old

    wait_until(is_replaced)
    assert serving.ask("/healthz").body == b"alive\n"
    end = time.monotonic() + 3
    wait_until(lambda: time.monotonic() > end)
    assert serving.ask("/healthz").body == b"alive\n"
    assert serving.workers() == worker
    assert not fault.exists()


def test_a_server_that_was_stopped_as_a_whole(serve: Serve) -> None:
    """As with `docker pause`. Its workers were not stuck: they could not run."""
    serving = serve("--stuck-after", "3s")
    wait_until(lambda: all_serve(serving, 2))
    workers = serving.workers()
    for each in (serving.process.pid, *workers):
        os.kill(each, signal.SIGSTOP)
    end = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > end)
    for each in (*workers, serving.process.pid):  # it looks whether they make progress
        os.kill(each, signal.SIGCONT)
    wait_until(lambda: all_serve(serving, 2))
    assert serving.ask("/healthz").body == b"alive\n"
    end = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > end)
    assert serving.workers() == workers
    assert "no progress" not in serving.log


def test_no_worker_can_be_started(fault: Path, serve: Serve) -> None:
    """There are no descriptors. The tries become rarer, and it serves again when there are."""
    serving = serve("--workers", "1")
    wait_until(lambda: all_serve(serving, 1))
    parent = psutil.Process(serving.process.pid)
    before = parent.rlimit(psutil.RLIMIT_NOFILE)
    parent.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))
    kill_all(serving)
    told = r"no worker can be started: .*Too many open files.*; the next try is in (\S+) s\n"
    wait_until(lambda: len(re.findall(told, serving.log)) >= 5)
    parent.rlimit(psutil.RLIMIT_NOFILE, before)
    assert re.findall(told, serving.log)[:5] == ["1.0", "1.0", "1.0", "1.0", "1.6"]
    recover(serving, 1)
    assert not fault.exists()


def note_threads(tmp_path: Path) -> Callable[[], list[list[str]]]:
    """For each fork of the server: how many threads it had, and the names of those of Python."""
    notes = tmp_path / "notes"
    customize(tmp_path, NOTING.format(notes=str(notes)))
    return lambda: [each.split() for each in notes.read_text().splitlines()]


@pytest.mark.parametrize("keep", ["--keep", "--no-keep"])
def test_the_threads_of_the_server_when_it_forks(
    keep: str, fault: Path, tmp_path: Path, serve: Serve
) -> None:
    """There is none but the keeper's; no warning comes of it."""
    notes = note_threads(tmp_path)
    serving = serve("--workers", "2", keep)
    wait_until(lambda: are_there(serving, 2, keep))
    for act in (kill_all, lambda _: serving.process.send_signal(signal.SIGHUP)):
        before = {*serving.workers()}
        act(serving)
        wait_until(lambda old=before: not old & {*serving.workers()})  # type: ignore[misc]
        wait_until(lambda: are_there(serving, 2, keep))
    assert are_forks(serving)
    mine = ["MainThread", "shmstream-keeper"] if keep == "--keep" else ["MainThread"]
    assert notes() == [[str(len(mine)), *mine]] * 6
    assert "Warning" not in serving.log
    assert not fault.exists()


def test_a_server_with_another_thread_forks_nothing(
    fault: Path, tmp_path: Path, serve: Serve
) -> None:
    """Its workers are new interpreters: a fork may find locked for ever what the thread has."""
    notes = note_threads(tmp_path)
    customize(tmp_path, "threading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    serving = serve("--workers", "2")
    wait_until(lambda: all_serve(serving, 2))
    assert not are_forks(serving)
    assert not Path(tmp_path, "notes").exists() or notes() == []
    assert "Warning" not in serving.log
    assert not fault.exists()
