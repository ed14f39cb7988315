"""The congestion control of connections: no timers for clients on the server's own host.

BBR sends in measured portions and sets a timer for each of them. For a client on the same host the
timers cost more than all other work for that client, and gain nothing. A connection that began with
BBR keeps its timers, whatever is chosen for it later. So the listening socket gets another
congestion control, which accepted connections inherit, and a connection of a client elsewhere gets
the system's one back.

    listening socket       reno, from the first client on this host on
    accepted connection    reno; if the client is elsewhere, the system's own

This is done only where the system's congestion control is BBR. `Protocol.congestion` switches it
off.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Protocol

_PLAIN = b"reno"
_PACED = b"bbr"
_SYSTEM = Path("/proc/sys/net/ipv4/tcp_congestion_control")


Address = tuple[str, int | None]


class Connection(Protocol):
    """A socket, or the part of one that an event loop shows."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As `socket.socket`."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """As `socket.socket`."""


def suit(connection: Connection, here: Address, there: Address) -> None:
    """Choose for an accepted connection, from its client's address `there` and its own, `here`."""
    with suppress(OSError):  # the connection is not TCP, or the system forbids the change
        if here[0] == there[0]:
            _unpace_listener(here[1])
        elif _of(connection) == _PLAIN and (system := _of_system()).startswith(_PACED):
            _choose(connection, system)


def _of(connection: Connection) -> bytes:
    control = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return control.rstrip(b"\0")


def _choose(connection: Connection, control: bytes) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control)


@cache
def _of_system() -> bytes:
    with suppress(OSError):
        return _SYSTEM.read_bytes().strip()
    return b""


@cache  # once for each port: there may be many descriptors
def _unpace_listener(port: int | None) -> None:
    """Find the socket of this process that listens on `port`: servers do not show theirs."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if _listens(found, port) and _of(found).startswith(_PACED):
                        _choose(found, _PLAIN)


def _listens(found: socket.socket, port: int | None) -> bool:
    return (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.type == socket.SOCK_STREAM
        and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        and found.getsockname()[1] == port
    )
