"""Flights where the threads of a process are greenlets: gunicorn with gevent, and eventlet.

A reader that waits in the C library would stop all greenlets, and with them the leader that it
waits for. Here several greenlets of several processes wait for one flight at a time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import pytest

from shmstream import Store
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest, has_published

# They are not imported here: eventlet changes what a fork does, for the whole process.
pytestmark = pytest.mark.skipif(
    not (find_spec("gevent") and find_spec("eventlet") and find_spec("gunicorn")),
    reason="gevent, eventlet and gunicorn are not installed",
)

MIB = 1 << 20
SIZE = 2 * MIB
MANY = 6  # clients
ROOT = Path(__file__).parents[2]


@contextmanager
def gunicorn(home: Path, **settings: str) -> Iterator[str]:
    """A server of tests.support.wsgi_app with two gevent workers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable, "-W", "ignore", "-m", "gunicorn", "-k", "gevent", "-w", "2",
            "--bind", f"fd://{listener.fileno()}", "--log-level", "critical",
            "--graceful-timeout", "1",
            "tests.support.wsgi_app:application",
        ]  # fmt: skip
        environment = {**os.environ, **settings, "HOME": str(home)}
        server = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[listener.fileno()])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.terminate()
            assert server.wait(PATIENCE) == 0


def get(url: str) -> tuple[int, bytes]:
    """The pid of the worker that answers, and the rest of the answer."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return int(answer.readline()), answer.read()


def ask_both_workers(
    clients: ThreadPoolExecutor, server: str, store: Store
) -> list[Future[tuple[int, bytes]]]:
    """Have clients of both workers ask for the blob; wait until the source stalls.

    The kernel decides which worker gets a connection. So the worker that has clients is stopped
    until the other one has some, too.
    """

    def readers() -> set[int]:
        return {each.identity.pid for flight in store.flights() for each in flight.followers}

    answers = [clients.submit(get, server) for _ in range(3)]
    wait_until(lambda: bool(readers()))
    if len(found := readers()) == 1:
        [first] = found
        os.kill(first, signal.SIGSTOP)
        try:
            answers += [clients.submit(get, server) for _ in range(3)]
            wait_until(lambda: len(readers()) == 2)
        finally:
            os.kill(first, signal.SIGCONT)
    wait_until(partial(has_published, store, MIB - 65536))
    return answers


def test_gunicorn_with_gevent(store: Store, origin: Origin, tmp_path: Path) -> None:
    """Two workers, several clients each, a source that falls silent: one download, no hang."""
    key, url = digest(1, SIZE), origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=MIB)
    told = {"STORE": store.folder, "KEY": key, "URL": url}
    with gunicorn(tmp_path, **told) as server, ThreadPoolExecutor(MANY) as clients:
        answers = ask_both_workers(clients, server, store)
        # All wait for the source by now, and yet both workers answer.
        workers: set[int] = set()
        while len(workers) < 2:
            workers.add(get(server + "/ping")[0])
        [flight] = store.flights()
        assert flight.leader is not None
        assert flight.leader.pid in workers
        origin.release()
        for answer in answers:
            worker, body = answer.result(PATIENCE)
            assert worker in workers
            assert sha256(body) == sha256(content(1, SIZE))
    assert len(origin.requests("/blob")) == 1


def test_a_gevent_worker_takes_over(store: Store, origin: Origin, tmp_path: Path) -> None:
    key, url = digest(1, SIZE), origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    told = {"STORE": store.folder, "KEY": key, "URL": url}
    with gunicorn(tmp_path, **told) as server, ThreadPoolExecutor(MANY) as clients:
        answers = ask_both_workers(clients, server, store)
        [flight] = store.flights()
        assert flight.leader is not None
        os.kill(flight.leader.pid, signal.SIGKILL)
        whole = 0
        for answer in answers:
            try:
                worker, body = answer.result(PATIENCE)
            except (
                OSError,
                HTTPException,
                ValueError,
            ):  # it was a client of the worker that was killed
                continue
            whole += 1
            assert worker != flight.leader.pid
            assert sha256(body) == sha256(content(1, SIZE))
        assert whole
    assert len(origin.requests("/blob")) == 2


READS_IN_GREENLETS = """
import sys
kind, folder, key, url = sys.argv[1:]
if kind == "gevent, late":
    import shmstream
if kind.startswith("gevent"):
    import gevent.monkey
    gevent.monkey.patch_all()
    from gevent import sleep, spawn
else:
    import eventlet
    eventlet.monkey_patch()
    from eventlet import sleep, spawn
import hashlib, subprocess, threading
from shmstream import CommandSource, Store

turns = []

def tick():
    while True:
        turns.append(1)
        if len(turns) == 5:
            print("others have their turn", flush=True)
        sleep(0.01)

def spin():
    while True:
        turns.append(1)
        sleep(0)

def read(number):
    with store.open(key, url, stall_timeout=60) as blob:
        got.append(hashlib.sha256(blob.read()).hexdigest())

def give():
    for start in range(0, 200):
        yield bytes([start]) * 100_000

store, got = Store(folder, durable=False), []
readers = [threading.Thread(target=read, args=[number]) for number in range(6)]
[each.start() for each in readers]
spawn(tick)
[each.join() for each in readers]
spawn(spin)
before = len(turns)
store.fetch("never waits " + str(id(store)), give())
mine = str(id(store))
command = CommandSource(["sh", "-c", "sleep 0.1; echo out"])
assert open(store.fetch("a command " + mine, command)).read() == "out\\n"
with store.create("a pipe " + mine) as blob:
    subprocess.run(["echo", "out"], stdout=blob, check=True)
assert store.open("a pipe " + mine).read() == b"out\\n"
print(len(got), *set(got), len(turns) - before)
"""


@pytest.mark.parametrize("kind", ["gevent", "gevent, late", "eventlet"])
def test_greenlets_of_two_processes(kind: str, store: Store, origin: Origin) -> None:
    """Readers in greenlets, and another greenlet that has its turn while they wait."""
    key, url = digest(1, SIZE), origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=MIB)
    command = [
        sys.executable, "-W", "ignore", "-c", READS_IN_GREENLETS, kind, store.folder, key, url,
    ]  # fmt: skip
    # eventlet's own names need dnspython, whose newest version eventlet cannot always import.
    environment = os.environ | {"EVENTLET_NO_GREENDNS": "yes"}
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for each in running:
        assert each.stdout is not None
        assert each.stdout.readline() == "others have their turn\n"
    wait_until(partial(has_published, store, MIB - 65536))  # a release ends what stalls by then
    origin.release()
    for each in running:
        out, _ = each.communicate(timeout=PATIENCE)
        assert each.returncode == 0
        count, got, turns = out.split()
        assert (count, got) == ("6", sha256(content(1, SIZE)))
        assert int(turns) > 10, "a source that never waits gives way"
    assert len(origin.requests("/blob")) == 1
