"""A real redis-server of a test's own: it can be killed, stopped, wiped, and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.interpreters import PATIENCE, wait_until

PACKAGE = "redis-server"


class Redis:
    """A redis-server on a port of 127.0.0.1, which keeps nothing on the disk."""

    def __init__(self, folder: Path, within: tuple[str, ...] = (), host: str = "127.0.0.1") -> None:
        self._folder = folder
        self._within = within
        self._host = host
        self._place = socket.socket()  # never listens: it keeps the port while nothing runs there
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.url = f"redis://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start an empty server, and wait until it answers."""
        self._folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [
                *self._within,
                "redis-server",
                *("--bind", self._host, "--port", str(self.port), "--save", ""),
                *("--appendonly", "no", "--dir", str(self._folder), "--protected-mode", "no"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if not self._within:
            wait_until(self.answers)

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self._host, self.port), 1.0) as made:
            made.sendall(b"PING\r\n")
            return made.recv(64).startswith(b"+PONG")
        return False

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url)

    def wipe(self) -> None:
        with self.client() as client:
            client.flushall()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """It hangs: connections are taken by the kernel, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        stopped = psutil.Process(self.process.pid)
        wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._place.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Late:
    """A way to a Redis on which each answer comes `late` seconds late. A context manager."""

    def __init__(self, redis: Redis) -> None:
        self._there = redis
        self.late = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._there.port))
                for pair in ((near, far, False), (far, near, True)):
                    thread = threading.Thread(target=self._pass, args=pair)
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, to: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer:
                    time.sleep(self.late)
                to.sendall(data)
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

    def __enter__(self) -> Late:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._threads:
            each.join(PATIENCE)
        self._listener.close()


def needed() -> None:
    """Skip the test without Redis or redis-py; with SHMSTREAM_REQUIRE_REAL=1, fail it."""
    try:
        import redis as _  # noqa: F401
    except ImportError:
        lacks = "redis-py is not installed: pip install 'shmstream[cluster]'"
    else:
        if shutil.which("redis-server"):
            return
        lacks = f"redis-server is not installed: apt-get install {PACKAGE}"
    if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
        pytest.fail(lacks)
    pytest.skip(lacks)


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    needed()
    server = Redis(tmp_path_factory.mktemp("redis") / "data")
    yield server
    server.close()


@pytest.fixture
def redis(redis_process: Redis) -> Iterator[Redis]:
    """An empty Redis that runs; a test may kill it, and leaves it running."""
    assert redis_process.process is not None
    redis_process.resume()
    if redis_process.process.poll() is not None:
        redis_process.start()
    redis_process.wipe()
    yield redis_process
    redis_process.resume()
    if redis_process.process.poll() is not None:
        redis_process.start()
