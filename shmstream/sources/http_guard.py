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

import socket

import urllib3
from urllib3 import exceptions
from urllib3.util import Url

from shmstream.sources.addresses import addresses_of, is_inside, names_inside, refusal
from shmstream.sources.http_pool import PlainConnection, Pool, TLSConnection, TLSPool


class InsideAddressError(exceptions.HTTPError, ValueError):
    """A redirect led to a private address."""

    def __init__(self, host: str | None, address: str) -> None:
        super().__init__(refusal(host, address))


def check_literal(url: Url) -> None:
    """Raises:
    InsideAddressError: the host in `url` is itself a private address, or localhost.
    """
    host = (url.host or "").strip("[]").rstrip(".")
    if names_inside(host):
        raise InsideAddressError(host, host)


def check_looked_up(url: Url) -> None:
    """Raises:
    InsideAddressError: a private address is among those of the host in `url`.
    """
    for address in addresses_of(url.host or ""):
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
