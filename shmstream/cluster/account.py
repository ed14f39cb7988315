"""`Account`: what one process of a node tells of its part in the cluster, for `top` and servers.

    <store>/cluster/accounts/<pid>-<random>     a checksum, a newline, and JSON

The process holds the kernel lock of its file, so an account whose lock is free is of a process that
has ended: `of_node` leaves it out, and the next process that begins removes it. While the process
has flights or gives to other nodes, a thread writes the account every second, and once more when
that is over. It waits a quarter of a second before the first time: then the flight has a parent,
and the processor is not taken from its first byte. The file is written in place, because the lock
belongs to it; a reader that finds half of it written sees that the checksum is wrong, and reads
again.

Where the folder cannot be written to, there is no account, and all else goes on.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from shmstream.system import process
from shmstream.system.files import read_file
from shmstream.system.locks import WHOLE_FILE, KernelLock
from shmstream.system.repeating import Repeating

_EVERY = 1.0  # s
_DELAY = 0.25  # s; before the first time
_TRIES = 5
_LIMIT = 1 << 20  # bytes
_SHOWN = 200  # flights, and digests that are given

_log = logging.getLogger("shmstream")


class Pull(NamedTuple):
    """From where the bytes of a flight come: `parent` is an address, `upstream`, or empty."""

    parent: str = ""
    from_peers: int = 0
    from_upstream: int = 0


@dataclass(frozen=True)
class Account:
    """What a node, or one process of it, has of the cluster. Sums are since the process began.

    Attributes:
        node: its address, as other nodes know it; empty for one that gives nothing to others.
        pulls: for the key of each flight that it leads, from where the bytes come.
        children: for each digest that it gives just now, the nodes that get it.
        from_peers: bytes that came from other nodes.
        from_upstream: bytes that came from upstreams.
        given: bytes that went to other nodes.
        calls: of the directory.
        failures: calls that the directory did not answer.
        away: seconds for which the directory did not answer.
        trouble: why it does not answer now; empty if it does.
    """

    node: str = ""
    pulls: Mapping[str, Pull] = field(default_factory=dict)
    children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    from_peers: int = 0
    from_upstream: int = 0
    given: int = 0
    calls: int = 0
    failures: int = 0
    away: float = 0.0
    trouble: str = ""

    @property
    def is_idle(self) -> bool:
        """Whether it neither gets nor gives anything."""
        return not (self.pulls or self.children)

    def __add__(self, other: Account) -> Account:
        """Both together: two processes of one node."""
        children = dict(self.children)
        for key, nodes in other.children.items():
            children[key] = (*children.get(key, ()), *nodes)
        return Account(
            self.node or other.node,
            {**self.pulls, **other.pulls},
            children,
            self.from_peers + other.from_peers,
            self.from_upstream + other.from_upstream,
            self.given + other.given,
            self.calls + other.calls,
            self.failures + other.failures,
            max(self.away, other.away),
            self.trouble or other.trouble,
        )


def of_node(folder: str) -> Account | None:
    """The account of all live processes of the node whose store lies in `folder`.

    None if none of them belongs to a cluster.
    """
    total: Account | None = None
    for path in _paths(folder):
        with suppress(OSError):
            lock = KernelLock(path)
            try:
                is_alive = lock.is_held_elsewhere(WHOLE_FILE)
            finally:
                lock.close()
            if is_alive and (found := _read(path)) is not None:
                total = found if total is None else total + found
    return total


def _paths(folder: str) -> list[str]:
    place = _place(folder)
    try:
        return sorted(os.path.join(place, name) for name in os.listdir(place))
    except OSError:
        return []


def _place(folder: str) -> str:
    return os.path.join(folder, "cluster", "accounts")


def _read(path: str) -> Account | None:
    """The account in that file; None if nobody has written it yet.

    Raises:
        OSError: it cannot be read.
    """
    for _ in range(_TRIES):
        checksum, _, body = read_file(path, _LIMIT).partition(b"\n")
        if checksum == _checksum(body):
            return _account(body)
    return None


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)


def _account(body: bytes) -> Account | None:
    """What a file says; None if a process of another version has written it."""
    try:
        told = json.loads(body)
        told["pulls"] = {key: Pull(*pull) for key, pull in told["pulls"].items()}
        told["children"] = {key: tuple(nodes) for key, nodes in told["children"].items()}
        return Account(**told)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


class Ledger:
    """Writes the account of this process. Any thread may call it."""

    def __init__(self, folder: str, look: Callable[[], Account]) -> None:
        """`folder` is the store's; `look` returns the account as it is now."""
        self._folder = folder
        self._look = look
        self._begin()
        process.register(self)

    def _begin(self) -> None:
        self._repeating = Repeating(self._tell, "shmstream-account", delay=_DELAY)
        self._file: KernelLock | None = None  # of the thread, and of `close` after it
        self._path = ""

    def wake(self) -> None:
        """Something has changed: write the account soon. Does not wait."""
        process.register(self)  # again, because a forked child begins with nothing registered
        self._repeating.wake()

    def _tell(self) -> float | None:
        account = self._look()
        self._write(account)
        return None if account.is_idle else _EVERY

    def _write(self, account: Account) -> None:
        told = asdict(account)
        for name in ("pulls", "children"):
            told[name] = dict(list(told[name].items())[:_SHOWN])
        body = json.dumps(told, separators=(",", ":")).encode()
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            data = _checksum(body) + b"\n" + body
            os.pwrite(self._file.fd, data, 0)
            os.ftruncate(self._file.fd, len(data))
        except OSError as error:
            _log.debug("no account of this node: %s", str(error))

    def _open(self) -> None:
        """Make the file, and lock it before any other process can find it dead."""
        place = _place(self._folder)
        os.makedirs(place, mode=0o700, exist_ok=True)
        for path in _paths(self._folder):
            _remove_if_dead(path)
        for path in _names(place):
            lock = KernelLock(path, os.O_CREAT | os.O_EXCL)
            if lock.try_acquire(WHOLE_FILE) and lock.is_at(path):
                self._file, self._path = lock, path
                return
            lock.close()

    def close(self) -> None:
        """Remove the account. Idempotent."""
        self._repeating.close(1.0)
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                os.unlink(self._path)
            file.close()

    def abandon(self) -> None:
        """In a forked child: the account is the parent's."""
        self._begin()


def _names(place: str) -> Iterator[str]:
    """Paths for a new account: another process may remove it before it is locked."""
    while True:
        yield os.path.join(place, f"{os.getpid()}-{secrets.token_hex(4)}")


def _remove_if_dead(path: str) -> None:
    with suppress(OSError):
        lock = KernelLock(path)
        try:
            if lock.try_acquire(WHOLE_FILE):
                os.unlink(path)
        finally:
            lock.close()
