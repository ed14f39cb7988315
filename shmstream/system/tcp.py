"""What the kernel knows of a TCP connection, whichever processes have used it. Linux only.

    written     bytes that were ever written to it: acknowledged ones, and those that wait for that
    taken       bytes that were ever read from it: received ones, without those that wait
    waiting     bytes that have come and were not read yet
    has_ended   whether the other side will send no more
    is_lost     whether nothing can be sent to it either
    is_held     whether a process on this host still has the other side of it
    drop        takes the next bytes from it, and drops them

`written` and `taken` come from two calls each, and the other side may change the answers in
between. So the first answer is asked for again, until it is the same before and after the second.
The caller makes sure that no process on this side writes or reads meanwhile.

A client that has ended its side may still read, or may have left: its packets are the same. But the
socket of a client on this host can be asked for by its addresses (`sock_diag`, see sock_diag(7)).
A socket that no process has any more has no inode.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios

_INFO = 256  # bytes; more than `struct tcp_info` has of what is read here
_COUNTS = struct.Struct("=QQ")
_ACKNOWLEDGED_AND_RECEIVED = 120  # offset: tcpi_bytes_acked, tcpi_bytes_received
_SENT_AND_REPEATED = 200  # offset: tcpi_bytes_sent, tcpi_bytes_retrans
_NOT_SENT = 144  # offset: tcpi_notsent_bytes
_NEEDED = 216  # bytes of `struct tcp_info`; since Linux 4.19
_ENDED = frozenset({6, 7, 8, 9, 11})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING
_CLOSE = 7
_TRIES = 1000
_NETLINK_SOCK_DIAG = 4
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST = 1  # NLM_F_REQUEST
_QUESTION = struct.Struct("=BBBxI")  # inet_diag_req_v2, until its inet_diag_sockid
_PORTS = struct.Struct("!HH")
_ANY = struct.pack("=IQ", 0, (1 << 64) - 1)  # of each interface, with each cookie
_INODE = 16 + 68  # offset in the message: idiag_inode of inet_diag_msg

is_known: bool = sys.platform == "linux"
"""Whether the kernel tells all this."""


def _info(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)


def _count(connection: socket.socket, what: int) -> int:
    told = fcntl.ioctl(connection.fileno(), what, bytes(4))
    return int.from_bytes(told, sys.byteorder)


def _both(connection: socket.socket, which: int, request: int) -> tuple[int, int, bytes]:
    """A count of TCP_INFO and one of an ioctl, of the same moment; and all of TCP_INFO.

    Raises:
        OSError: the kernel does not tell, or the connection is none of TCP.
        InterruptedError: the counts changed all the time.
    """
    before = _info(connection)
    if len(before) < _NEEDED:
        raise OSError("the kernel is older than Linux 4.19")
    for _ in range(_TRIES):
        there = _count(connection, request)
        after = _info(connection)
        first: int = _COUNTS.unpack_from(after, _ACKNOWLEDGED_AND_RECEIVED)[which]
        if first == _COUNTS.unpack_from(before, _ACKNOWLEDGED_AND_RECEIVED)[which]:
            return first, there, after
        before = after
    raise InterruptedError(f"the counts of a connection changed {_TRIES} times in a row")


def written(connection: socket.socket) -> int:
    """Bytes that were ever written to an accepted connection. Call it before it is shut down.

    Raises:
        OSError: the kernel does not tell, or the connection is none of TCP.
    """
    try:
        acknowledged, unacknowledged, _ = _both(connection, 0, termios.TIOCOUTQ)
    except InterruptedError:
        info = _info(connection)  # one snapshot; wrong if the kernel failed to send a packet
        sent, repeated = _COUNTS.unpack_from(info, _SENT_AND_REPEATED)
        unsent = int.from_bytes(info[_NOT_SENT : _NOT_SENT + 4], sys.byteorder)
        return int(sent - repeated + unsent)
    return acknowledged + unacknowledged


def taken(connection: socket.socket) -> int:
    """Bytes that were ever read from an accepted connection.

    Raises:
        OSError: the kernel does not tell, or the connection is none of TCP.
    """
    received, unread, info = _both(connection, 1, termios.FIONREAD)
    return received - unread - (info[0] in _ENDED)  # the end counts as a byte


def waiting(connection: socket.socket) -> int:
    """Bytes that have come and were not read yet.

    Raises:
        OSError: the connection is none of TCP.
    """
    return _count(connection, termios.FIONREAD)


def has_ended(connection: socket.socket) -> bool:
    """Whether the other side has ended its half of the connection, or all of it.

    Raises:
        OSError: the connection is none of TCP.
    """
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED


def is_lost(connection: socket.socket) -> bool:
    """Whether the other side has reset the connection, so that nothing can be sent either.

    Raises:
        OSError: the connection is none of TCP.
    """
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE


def is_held(here: tuple[str, int | None], there: tuple[str, int | None]) -> bool | None:
    """Whether a process on this host has the side `there` of the connection from `here` to there.

    Does not block. None if the kernel does not know that side: it is on another host, in another
    network namespace, or long gone.
    """
    family = socket.AF_INET6 if ":" in here[0] else socket.AF_INET
    try:
        addresses = [socket.inet_pton(family, each[0]).ljust(16, b"\0") for each in (there, here)]
        ports = _PORTS.pack(there[1] or 0, here[1] or 0)
        question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
        question += ports + b"".join(addresses) + _ANY
        head = _MESSAGE.pack(_MESSAGE.size + len(question), _BY_FAMILY, _REQUEST, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.sendall(head + question)
            told = kernel.recv(4096, socket.MSG_DONTWAIT)  # the kernel has answered within the call
    except (OSError, AttributeError):  # no Linux, or the kernel has no `sock_diag`
        return None
    if _MESSAGE.unpack_from(told)[1] != _BY_FAMILY or len(told) < _INODE + 4:
        return None
    return told[_INODE : _INODE + 4] != bytes(4)


def drop(connection: socket.socket, count: int) -> int:
    """Read the next `count` bytes and drop them; how many there were. Does not block.

    Raises:
        OSError: the connection is lost.
    """
    dropped = 0
    while dropped < count:
        try:
            data = connection.recv(min(count - dropped, 1 << 16))
        except BlockingIOError:
            break
        if not data:
            break
        dropped += len(data)
    return dropped
