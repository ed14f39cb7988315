"""Connections to which the kernel takes little at one time, also on this host.

The sender's buffer alone does not do that: it takes one packet in any case, which on this host may
have 64 KiB. No packet has more than half of what the receiver has room for.
"""

from __future__ import annotations

import socket

_BYTES = 4608


def make_narrow(sender: socket.socket) -> None:
    """Have the kernel keep little that the receiver has not acknowledged."""
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BYTES)


def connect(address: tuple[str, int], patience: float, *, is_narrow: bool) -> socket.socket:
    """Connect; if it is narrow, with little room for what comes."""
    client = socket.socket()
    if is_narrow:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BYTES)
    client.settimeout(patience)
    client.connect(address)
    return client
