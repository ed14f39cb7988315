"""The HTTP file system of fsspec, kept from following redirects from outside to a service inside.

It leaves redirects to aiohttp, which follows them to any address. So it gets a client of ours, with
the rule of `http_guard`: no redirect leads to a private address, unless the server that was asked
first has private addresses only.

    a redirect     the address in its URL, or those that the name in it has, are looked at before
                   anything is asked there
    a connection   is made to the addresses that were looked up for it, and these are looked at
                   once more: a name may have another address by then

By a proxy the connection goes to the proxy, so only the first look counts. A client of the user's
own (`get_client`, or a `connector` in `client_kwargs`) keeps how it connects, and gets the first
look too.

Needs fsspec; imports aiohttp when there is such a file system.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from fsspec.core import split_protocol

from shmstream.sources.addresses import (
    addresses_of,
    is_allowed_here,
    is_host_inside,
    is_inside,
    names_inside,
    refusal,
)
from shmstream.system.threads import in_thread

if TYPE_CHECKING:
    from types import SimpleNamespace

    import aiohttp

_SCHEMES = ("http", "https")
_NAMES = ("shmstream-names", 8)  # threads that look up names

_guarded: ContextVar[str] = ContextVar("shmstream_guarded", default="")
"""The host that the request of this task was redirected to, if it may not be inside."""


class InsideAddress(ValueError):
    """A redirect led to a private address."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(refusal(host, address))


def guarded(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of fsspec for `url`, which may be a chain, with guarded clients for HTTP."""
    first, *others = [split_protocol(each)[0] or each for each in url.split("::")]
    found = guarded_system(options.get("protocol") or first, options)
    for scheme in {*others} & {*_SCHEMES}:
        found[scheme] = guarded_system(scheme, found.get(scheme, {}))
    return found


def guarded_system(protocol: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a file system of fsspec, and of its target, with guarded clients for HTTP."""
    found = dict(options)
    if protocol in _SCHEMES:
        found["get_client"] = Guarded.around(found.get("get_client"))
    if isinstance(target := found.get("target_protocol"), str):
        found["target_options"] = guarded_system(target, found.get("target_options") or {})
    return found


def cause_of(error: Exception) -> Exception:
    """The refusal that caused `error`, if one did; else `error`. fsspec tells only the URL."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        if isinstance(cause, InsideAddress):
            return cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return error


class Guarded:
    """Makes clients that follow no redirect to the inside. Equal ones have the same text."""

    def __init__(self, make: Callable[..., Awaitable[aiohttp.ClientSession]] | None = None) -> None:
        """`make` makes the client; None: it is one of ours."""
        self._make = make

    @classmethod
    def around(cls, make: Any) -> Guarded:
        """The client that `make` makes, guarded. Idempotent."""
        return make if isinstance(make, cls) else cls(make)

    async def __call__(self, **options: Any) -> aiohttp.ClientSession:
        """A new client; the arguments are those of `aiohttp.ClientSession`."""
        import aiohttp

        if self._make is not None:
            session = await self._make(**options)
        else:
            if options.get("connector") is None:
                options["connector"] = _connector()
            session = aiohttp.ClientSession(**options)
        watch = aiohttp.TraceConfig()
        watch.on_request_start.append(_begin)
        watch.on_request_redirect.append(_follow)
        watch.freeze()
        session.trace_configs.append(watch)
        return session

    def __repr__(self) -> str:
        return "Guarded()" if self._make is None else f"Guarded({self._make!r})"


async def _begin(_: aiohttp.ClientSession, context: SimpleNamespace, told: Any) -> None:
    """A request begins: note where."""
    context.first = str(told.url)
    _guarded.set("")


async def _follow(_: aiohttp.ClientSession, context: SimpleNamespace, told: Any) -> None:
    """The answer is a redirect.

    Raises:
        InsideAddress: it leads from the outside to the inside.
    """
    headers = told.response.headers
    location = headers.get("Location") or headers.get("URI") or ""
    there = urljoin(str(told.response.url), location)
    before, after = urlsplit(context.first), urlsplit(there)
    if (
        (after.scheme, after.netloc) == (before.scheme, before.netloc)
        or is_allowed_here()
        or await in_thread(partial(is_host_inside, before.hostname or ""), _NAMES)
    ):
        _guarded.set("")
        return
    host = after.hostname or ""
    found = [host] if names_inside(host) else await in_thread(partial(addresses_of, host), _NAMES)
    for address in found:
        if names_inside(address):
            told.response.close()
            raise InsideAddress(host, address)
    _guarded.set(host)


def _connector() -> aiohttp.TCPConnector:
    """As aiohttp makes them, but each connection looks its host up by itself."""
    import aiohttp

    class Resolver(aiohttp.ThreadedResolver):
        """Refuses private addresses of a host that a redirect has led to."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[Any]:
            found = await super().resolve(host, port, family)
            if host == _guarded.get():
                for each in found:
                    if is_inside(each["host"]):
                        raise InsideAddress(host, each["host"])
            return found

    return aiohttp.TCPConnector(resolver=Resolver(), use_dns_cache=False)
