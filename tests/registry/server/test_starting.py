"""How workers start: as forks of the supervisor, or by exec. Real servers, real SIGKILL."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from shmstream.registry.server.starting import Forked
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.kept import STARTS, Client, all_serve, kept_ports, ports
from tests.support.serving import Serve, Serving

EXECUTED = "shmstream.registry.server.worker"  # is in the command line of a worker by exec
TABLE = "/memfd:shmstream-connections (deleted)"


def are_forks(serving: Serving) -> bool:
    """Whether no worker was started by exec."""
    return not any(EXECUTED in psutil.Process(each).cmdline() for each in serving.workers())


def descriptors(process: int) -> list[tuple[str, int]]:
    """What each descriptor of a process is of: its name, and its inode."""
    found = []
    for each in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            found.append((str(each.readlink()), each.stat().st_ino))
    return found


def kinds(process: int) -> Counter[str]:
    """How many descriptors of each kind a process has."""
    return Counter(
        re.sub(r"\d+|/shmstream-serve-\w+", "", name) for name, _ in descriptors(process)
    )


def signals(process: int) -> list[int]:
    """The signals that a process blocks, ignores and handles, of those that can be sent to it."""
    found = re.findall(r"Sig(?:Blk|Ign|Cgt):\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    errors = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
    of_errors = sum(1 << each - 1 for each in errors)  # `-X dev` handles these
    return [int(each, 16) & ~of_errors for each in found]


def replace(serving: Serving, count: int) -> None:
    """Have other workers take the places of all."""
    before = set(serving.workers())
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(serving.workers()) and all_serve(serving, count))


def replace_one(serving: Serving, worker: int, count: int) -> None:
    """Kill a worker, and wait for the next one."""
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: worker not in serving.workers() and all_serve(serving, count))


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", -signal.SIGKILL)])
def test_the_end_of_a_child(script: str, code: int) -> None:
    """It is told as `subprocess.Popen` tells it, and nothing is sent to a child that has ended."""
    child = Forked(spawned(script), io.BytesIO())
    assert (child.wait(), child.poll(), child.returncode) == (code, code, code)
    child.terminate()
    child.kill()


def test_a_child_that_runs() -> None:
    child = Forked(spawned("exec sleep 1000"), io.BytesIO())
    assert child.poll() is None
    child.terminate()
    assert child.wait() == -signal.SIGTERM


def test_a_child_whose_end_another_one_has_seen() -> None:
    pid = spawned("exit 7")
    os.waitpid(pid, 0)
    assert Forked(pid, io.BytesIO()).wait() == 0, "as with Popen: nobody knows"


def spawned(script: str) -> int:
    """A child of this process that runs a script of the shell."""
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


def test_a_forked_worker_is_as_a_fresh_one(serve: Serve, tmp_path: Path) -> None:
    """It has descriptors of the same kinds, and treats signals in the same way; but less memory."""
    code = tmp_path / "sitecustomize.py"
    code.write_text("")
    serving = serve("--workers", "1")
    wait_until(lambda: all_serve(serving, 1))
    clients = [Client(serving) for _ in range(8)]
    for each in clients:
        each.ask("/healthz")
    replace_one(serving, serving.workers()[0], 1)
    for each in clients:
        assert each.ask("/healthz").body == b"alive\n"
        each.close()
    wait_until(lambda: kept_ports(serving) == set())
    [forked] = serving.workers()
    assert are_forks(serving)
    assert os.getpgid(forked) == forked
    seen = kinds(forked), signals(forked)
    private = psutil.Process(forked).memory_full_info().uss
    code.write_text("# of the next version")
    replace(serving, 1)
    [fresh] = serving.workers()
    assert not are_forks(serving)
    assert serving.ask("/healthz").body == b"alive\n"
    wait_until(lambda: (kinds(fresh), signals(fresh)) == seen)
    assert private < psutil.Process(fresh).memory_full_info().uss / 2


def clients_of(serving: Serving, count: int) -> list[Client]:
    """So many clients, each of which has had an answer, and keeps its connection."""
    clients = [Client(serving) for _ in range(count)]
    for each in clients:
        each.ask("/healthz")
    return clients


def test_no_worker_has_what_another_one_has(serve: Serve) -> None:
    """A worker that starts late has no client, no channel, no pipe and no table of the others."""
    serving = serve("--workers", "3")
    wait_until(lambda: all_serve(serving, 3))
    clients = clients_of(serving, 12)
    for worker in serving.workers():
        replace_one(serving, worker, 3)
    for each in clients:
        assert each.ask("/healthz").body == b"alive\n"
    assert are_forks(serving)
    shared = Counter[tuple[str, int]]()
    for worker in serving.workers():
        found = descriptors(worker)
        assert [name for name, _ in found].count(TABLE) == 2, "its table, and the map of that"
        shared.update({each for each in found if re.match(r"socket|pipe|/memfd", each[0])})
    both = [each for each, count in shared.items() if count > 1]
    assert [name for name, _ in both] == [listener(serving)]
    for each in clients:
        each.close()


def listener(serving: Serving) -> str:
    """The listening socket, as it is called among the descriptors of a process."""
    found = psutil.Process(serving.process.pid).net_connections("tcp")
    [number] = [each.fd for each in found if each.status == psutil.CONN_LISTEN]
    return os.readlink(f"/proc/{serving.process.pid}/fd/{number}")


def test_a_connection_ends_although_workers_were_started(serve: Serve) -> None:
    """No process has it any more, although all workers but its own started after it."""
    serving = serve("--workers", "2")
    wait_until(lambda: all_serve(serving, 2))
    client = Client(serving)
    client.ask("/healthz")
    for _ in range(2):
        [other] = {*serving.workers()} - {client.worker}
        replace_one(serving, other, 2)
    assert client.ask("/healthz", Connection="close").body == b"alive\n"
    assert client.is_over()
    wait_until(lambda: holders(serving, client.port) == [])
    client.close()


def holders(serving: Serving, port: int) -> list[int]:
    """The processes that have the connection of that client."""
    processes = [serving.process.pid, *serving.workers()]
    return [each for each in processes if port in ports(serving, each)]


def test_fifty_workers_are_killed(serve: Serve) -> None:
    """Their clients go on, and the parent has as many descriptors as in the beginning."""
    serving = serve("--workers", "2")
    wait_until(lambda: all_serve(serving, 2))
    clients = clients_of(serving, 6)
    wait_until(lambda: len(kept_ports(serving)) == len(clients))
    before = kinds(serving.process.pid)
    for number in range(50):
        replace_one(serving, serving.workers()[number % 2], 2)
        for each in clients:
            assert each.ask("/healthz").body == b"alive\n"
    wait_until(lambda: kinds(serving.process.pid) == before)
    assert are_forks(serving)
    assert serving.log.count("died by SIGKILL") == 50
    for each in clients:
        each.close()


def test_workers_that_are_killed_before_they_serve(serve: Serve) -> None:
    serving = serve("--workers", "1")
    wait_until(lambda: serving.metric(STARTS) == 1)
    for _ in range(4):
        [worker] = serving.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda gone=worker: serving.workers() not in ([], [gone]))  # type: ignore[misc]
    assert serving.ask("/healthz").body == b"alive\n"
    assert serving.log.count("died by SIGKILL") == 4


def test_the_parent_is_killed_while_workers_start(serve: Serve) -> None:
    """All of them end: nobody listens any more."""
    serving = serve("--workers", "4")
    wait_until(lambda: all_serve(serving, 4))
    before = {*serving.workers()}
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len({*serving.workers()} - before) == 4)
    serving.process.kill()
    serving.process.wait()
    wait_until(lambda: not listens(serving))
    wait_until(serving.is_gone)
    assert serve().stop() == 0  # tidies up


def listens(serving: Serving) -> bool:
    try:
        socket.create_connection((serving.host, serving.port), PATIENCE).close()
    except ConnectionRefusedError:
        return False
    except ConnectionError:
        pass
    return True


def test_workers_have_the_code_of_the_last_sighup(serve: Serve, tmp_path: Path) -> None:
    """After SIGHUP they are forks as long as the code is the same."""
    code = tmp_path / "sitecustomize.py"
    code.write_text("")
    serving = serve("--workers", "1")
    wait_until(lambda: all_serve(serving, 1))
    replace(serving, 1)
    assert are_forks(serving)
    replace_one(serving, serving.workers()[0], 1)
    assert are_forks(serving)
    code.write_text("# of the next version")
    replace(serving, 1)
    replace_one(serving, serving.workers()[0], 1)
    assert not are_forks(serving), "also those that are started later"


def test_workers_that_die_at_once_are_not_started_in_a_hurry(serve: Serve, tmp_path: Path) -> None:
    """The code has changed, so every worker is a new interpreter, and runs that file."""
    fault = tmp_path / "sitecustomize.py"
    fault.write_text("")
    serving = serve("--workers", "1")
    wait_until(lambda: all_serve(serving, 1))
    fault.write_text("# of the next version")
    replace(serving, 1)
    fault.write_text(f"import os, sys\nif {EXECUTED!r} in sys.orig_argv: os._exit(7)")
    os.kill(serving.workers()[0], signal.SIGKILL)
    wait_until(lambda: serving.log.count("died with exit code 7") >= 3)
    fault.unlink()
    wait_until(lambda: serving.ask("/healthz").status == 200)  # the request waits for the worker
    assert serving.log.count("died with exit code 7") < 10
