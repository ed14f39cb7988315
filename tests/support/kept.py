"""Clients that keep their connection, and the workers that have it: plain sockets, real SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.registry import serves
from shmstream.registry.ops.processes import is_worker
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.serving import Serving

STARTS = "shmstream_worker_starts_total"


@dataclass
class Reply:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes


class Cut(Exception):
    """The connection ended within a response, or before it."""


class Client:
    """One connection. It checks that nothing comes that was not asked for."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.socket = socket.create_connection((serving.host, serving.port), PATIENCE)
        self.port: int = self.socket.getsockname()[1]
        self._come = b""

    def say(self, path: str, method: str = "GET", **headers: str) -> None:
        """Send a request."""
        lines = [f"{method} {path} HTTP/1.1", "Host: here"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def hear(self, method: str = "GET") -> Reply:
        """Read a response. Raises `Cut`."""
        status, headers = self.head()
        is_empty = method == "HEAD" or status == 304
        length = 0 if is_empty else int(headers["content-length"])
        return Reply(status, headers, self.read(length))

    def ask(self, path: str, method: str = "GET", **headers: str) -> Reply:
        self.say(path, method, **headers)
        return self.hear(method)

    def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._come:
            self._more()
        head, _, self._come = self._come.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        assert status.startswith("HTTP/1.1 "), head
        named = [line.partition(": ") for line in lines]
        assert len({name for name, _, _ in named}) == len(named), "two heads are mixed"
        return int(status.split()[1]), {name: value for name, _, value in named}

    def read(self, count: int) -> bytes:
        parts, have = [self._come], len(self._come)
        while have < count:
            self._come = b""
            self._more()
            parts.append(self._come)
            have += len(self._come)
        data = b"".join(parts)
        self._come = data[count:]
        return data[:count]

    def _more(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError as error:
            raise Cut from error
        if not data:
            raise Cut
        self._come += data

    def is_over(self) -> bool:
        """Whether the connection has ended, after all that was read."""
        assert self._come == b""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    @property
    def worker(self) -> int:
        """The process that has the connection: waits until a worker has it."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [
                each for each in self._serving.workers() if self.port in ports(self._serving, each)
            ]
            return bool(found)

        wait_until(look)
        return found[0]

    def close(self) -> None:
        self.socket.close()


def ports(serving: Serving, process: int) -> set[int]:
    """The ports of the clients whose connections a process has.

    None of a worker that is just being forked: it has those of its parent for an instant.
    """
    try:
        known = psutil.Process(process)
        if process != serving.process.pid and not is_worker(known):
            return set()
        found = known.net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {each.raddr.port for each in found if each.raddr and each.laddr.port == serving.port}


def kept_ports(serving: Serving) -> set[int]:
    """The ports of the clients whose connections are kept."""
    return ports(serving, serving.process.pid)


def left_over(serving: Serving) -> set[str]:
    """Sockets that a process of the server has, and whose connection the kernel no longer knows."""
    known = set()
    for table, column in (("tcp", 9), ("tcp6", 9), ("unix", 6), ("netlink", 9)):
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        known |= {f"socket:[{line.split()[column]}]" for line in lines}
    found = set()
    for process in (serving.process.pid, *serving.workers()):
        folder = Path(f"/proc/{process}/fd")
        with suppress(FileNotFoundError):  # a worker has just ended
            for each in folder.iterdir():
                with suppress(FileNotFoundError):
                    found.add(str(each.readlink()))
    return {each for each in found if each.startswith("socket:")} - known


def kill(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


def are_ready(serving: Serving, count: int, starts: int) -> bool:
    """Whether `count` workers run, and `starts` workers have begun to serve so far."""
    return len(serving.workers()) == count and serving.metric(STARTS) == starts


def all_serve(serving: Serving, count: int) -> bool:
    """Whether there are `count` workers, and each of them takes connections."""
    workers = serving.workers()
    return len(workers) == count and all(map(serves, workers))
