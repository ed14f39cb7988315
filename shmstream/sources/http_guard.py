"""Where a redirect may lead: not from the outside to a service inside.

A server on the internet could redirect to a service that only this host or its network can reach,
such as one on loopback, or the one at 169.254.169.254 that tells a cloud machine its secrets; and
the answer would be handed on as a blob. So a redirect to another server must not end at a private
address, unless the server that was asked first has a private address itself.

    directly        the connection is made, and its address is looked at before anything is sent:
                    a name cannot have another address by then
    by a proxy      the proxy looks the name up, so only an address in the URL itself is looked at
    a pool of the   the name is looked up before the request
      user's own

Needs urllib3, the extra `http`.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import urllib3
from urllib3 import exceptions
from urllib3.util import Url

from shmstream.sources.http_pool import PlainConnection, Pool, TLSConnection, TLSPool

_ALLOWED = "SHMSTREAM_PRIVATE_REDIRECTS"
"""The variable of the environment that, set to 1, allows such redirects in the whole process."""

_INSIDE = [
    ipaddress.ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "0.0.0.0/8",
                 "198.18.0.0/15", "240.0.0.0/4", "fc00::/7", "fec0::/10", "64:ff9b:1::/48",
                 "::ffff:0:0:0/96")
]  # fmt: skip
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last four bytes are an address of IPv4


class InsideAddressError(exceptions.HTTPError, ValueError):
    """A redirect led to a private address."""

    def __init__(self, host: str | None, address: str) -> None:
        where = f"{host}, which is {address}" if host != address else address
        super().__init__(
            f"it redirects to {where}: that is a private address, and it is none itself; "
            f"{_ALLOWED}=1 allows this"
        )


def is_allowed_here() -> bool:
    """Whether the environment of this process allows redirects to private addresses."""
    return os.environ.get(_ALLOWED, "") not in ("", "0")


def is_inside(address: str) -> bool:
    """Whether an IP address is on loopback, link-local or private; False for what is no address.

    An address of IPv4 may have fewer numbers, or be one: `127.1`, `0x7f000001`, `2130706433`.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        try:
            found = ipaddress.IPv4Address(socket.inet_aton(address))
        except (OSError, UnicodeError, ValueError):
            return False
    if isinstance(found, ipaddress.IPv6Address):
        embedded = found.ipv4_mapped or found.sixtofour
        if embedded is None and found in _NAT64:
            embedded = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if embedded is not None:
            return is_inside(str(embedded))
    special = found.is_loopback or found.is_link_local or found.is_unspecified
    return special or any(found in each for each in _INSIDE if each.version == found.version)


def addresses_of(url: Url) -> list[str]:
    """The addresses of the host in `url`; empty if it cannot be looked up. Blocks for that."""
    host = (url.host or "").strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(each[4][0]) for each in found]


def is_server_inside(url: Url) -> bool:
    """Whether the server of `url` has private addresses only. Blocks for looking them up."""
    found = addresses_of(url)
    return bool(found) and all(is_inside(each) for each in found)


def check_literal(url: Url) -> None:
    """Raises:
    InsideAddressError: the host in `url` is itself a private address, or localhost.
    """
    host = (url.host or "").strip("[]").rstrip(".")
    if is_inside(host) or host == "localhost" or host.endswith(".localhost"):
        raise InsideAddressError(host, host)


def check_looked_up(url: Url) -> None:
    """Raises:
    InsideAddressError: a private address is among those of the host in `url`.
    """
    for address in addresses_of(url):
        if is_inside(address):
            raise InsideAddressError(url.host, address)


def _checked(made: socket.socket, host: str) -> socket.socket:
    address = str(made.getpeername()[0])
    if is_inside(address):
        made.close()
        raise InsideAddressError(host, address)
    return made


class GuardedConnection(PlainConnection):
    """A connection that is not made to a private address."""

    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn(), self.host)


class _GuardedTLSConnection(TLSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn(), self.host)


class _GuardedPool(Pool):
    ConnectionCls = GuardedConnection


class _GuardedTLSPool(TLSPool):
    ConnectionCls = _GuardedTLSConnection


def guard(pools: urllib3.PoolManager) -> None:
    """From now on `pools` makes no connection to a private address."""
    pools.pool_classes_by_scheme = {"http": _GuardedPool, "https": _GuardedTLSPool}
