"""Connections from this host, to which nothing is gained by sending in measured portions.

Where the system's congestion control is BBR, it sets a timer for each portion: for a client on the
same host that costs more than all else that is done for it. A connection that has begun so keeps
its timers, whatever is chosen for it later. So the choice is the listener's: what it accepts
begins without, and a client elsewhere is given the system's own congestion control.

    listener   reno, from its first client on this host on
    accepted   reno as well; a connection from elsewhere: what the system has for all
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
    """A socket, or what an event loop shows of one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As `socket.socket`."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """As `socket.socket`."""


def suit(connection: Connection, here: Address, there: Address) -> None:
    """Suit an accepted connection to its client's address, `there`; `here` is its own."""
    with suppress(OSError):  # it is no TCP, or may not be changed
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


@cache  # once for each: the descriptors may be many
def _unpace_listener(port: int | None) -> None:
    """Find the socket of this process that listens there: servers do not show theirs."""
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
