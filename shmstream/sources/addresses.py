"""Private addresses: on loopback, link-local, or of a network that the internet does not reach.

A redirect from outside must not lead to one of them: `http_guard` sees to that for `HTTPSource`,
`fsspec_guard` for file systems of fsspec.
"""

from __future__ import annotations

import ipaddress
import os
import socket

_ALLOWED = "SHMSTREAM_PRIVATE_REDIRECTS"
"""The variable of the environment that, set to 1, allows such redirects in the whole process."""

_INSIDE = [
    ipaddress.ip_network(each)
    for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "0.0.0.0/8",
                 "198.18.0.0/15", "240.0.0.0/4", "fc00::/7", "fec0::/10", "64:ff9b:1::/48",
                 "::ffff:0:0:0/96")
]  # fmt: skip
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last four bytes are an address of IPv4


def refusal(host: str | None, address: str) -> str:
    """What to say of a redirect to that host, which has that private address."""
    where = f"{host}, which is {address}" if host != address else address
    return (
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


def names_inside(host: str) -> bool:
    """Whether `host` is itself a private address, or localhost."""
    host = host.strip("[]").rstrip(".").lower()
    return is_inside(host) or host == "localhost" or host.endswith(".localhost")


def is_host_inside(host: str) -> bool:
    """Whether a host has private addresses only. Blocks for looking them up."""
    found = addresses_of(host)
    return bool(found) and all(is_inside(each) for each in found)


def addresses_of(host: str) -> list[str]:
    """The addresses of a host; empty if it cannot be looked up. Blocks for that."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(each[4][0]) for each in found]
