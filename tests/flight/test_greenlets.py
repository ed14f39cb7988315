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
MANY = 48  # clients at most
ROOT = Path(__file__).parents[2]


@contextmanager
def gunicorn(home: Path, *options: str, **settings: str) -> Iterator[str]:
    """A server of tests.support.wsgi_app with two gevent workers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable, "-W", "ignore", "-m", "gunicorn", "-k", "gevent", "-w", "2",
            "--bind", f"fd://{listener.fileno()}", "--log-level", "critical",
            "--graceful-timeout", "1", *options,
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
    """Have clients ask for the blob until both workers have readers; wait until the source stalls.

    The kernel decides which worker gets a connection.
    """
    answers = [clients.submit(get, server) for _ in range(6)]

    def both_have_readers() -> bool:
        if len(answers) < MANY:
            answers.append(clients.submit(get, server))
        return len({each.identity for each in store.flights()[0].followers}) == 2

    wait_until(lambda: bool(store.flights()))
    wait_until(both_have_readers)
    wait_until(partial(has_published, store, MIB - 65536))
    return answers


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_gunicorn_with_gevent(
    options: tuple[str, ...], store: Store, origin: Origin, tmp_path: Path
) -> None:
    """Two workers, several clients each, a source that falls silent: one download, no hang."""
    key, url = digest(1, SIZE), origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=MIB)
    told = {"STORE": store.folder, "KEY": key, "URL": url}
    with gunicorn(tmp_path, *options, **told) as server, ThreadPoolExecutor(MANY) as clients:
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
import hashlib, threading, time
from shmstream import Store

turns = []

def tick():
    while True:
        turns.append(time.monotonic())
        sleep(0.01)

def read(number):
    with store.open(key, url, stall_timeout=30) as blob:
        got.append(hashlib.sha256(blob.read()).hexdigest())

def give():
    for start in range(0, 200):
        yield bytes([start]) * 100_000

store, got = Store(folder, durable=False), []
ticker = spawn(tick)
readers = [threading.Thread(target=read, args=[number]) for number in range(6)]
[each.start() for each in readers]
[each.join() for each in readers]
ticks = len(turns)
with store.open("never waits " + str(hash(sys.argv[1])), give()) as blob:
    assert len(blob.read()) == 20_000_000
print(len(got), set(got), ticks, len(turns) - ticks)
"""


@pytest.mark.parametrize("kind", ["gevent", "gevent, late", "eventlet"])
def test_greenlets_of_two_processes(kind: str, store: Store, origin: Origin) -> None:
    """Readers in greenlets, and one that counts how often it has its turn meanwhile."""
    key = digest(1, SIZE)
    url = origin.serve("/blob", seed=1, size=SIZE, rate=8 * MIB)
    command = [
        sys.executable, "-W", "ignore", "-c", READS_IN_GREENLETS, kind, store.folder, key, url,
    ]  # fmt: skip
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for each in running:
        out, _ = each.communicate(timeout=PATIENCE)
        assert each.returncode == 0
        count, hashes, ticks, more = out.replace("{", "").replace("}", "").split()
        assert (count, hashes) == ("6", repr(sha256(content(1, SIZE))))
        assert int(ticks) > 3
        assert int(more) > 1, "a source that never waits gives way"
    assert len(origin.requests("/blob")) == 1
