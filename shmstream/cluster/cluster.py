"""`Cluster`: what a user says of the cluster that a store belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shmstream.cluster.signing import check_secret
from shmstream.sources.base import public

if TYPE_CHECKING:
    import ssl

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s/@]+)):(\d{1,5})", re.ASCII)
_ANY = re.compile(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]\s/@]*)):(\d{1,5})", re.ASCII)
_SCHEMES = ("redis://", "rediss://", "unix://")


class NotValid(ValueError):
    """What is not valid of a cluster: `mistakes` has pairs of a setting and what is wrong."""

    def __init__(self, mistakes: Sequence[tuple[str, str]]) -> None:
        super().__init__(mistakes)
        self.mistakes: Sequence[tuple[str, str]] = mistakes

    def __str__(self) -> str:
        return "; ".join(f"{key} {reason}" for key, reason in self.mistakes)


@dataclass(frozen=True, repr=False)
class Cluster:
    """The cluster of a store: nodes that give each other what they have, or have in flight.

    Blobs whose key is a digest are pulled from their upstream by one node; the others get them from
    nodes that have them already. Blobs under a name stay on their host, because only a digest shows
    that two nodes mean the same bytes. Needs the extra `cluster`. See docs/cluster.md.

    Args:
        url: of Redis or Valkey, 6.2 or later: `redis://host:6379`, `rediss://` for TLS, `unix://`.
        secret: what all nodes know, and nobody else; 16 bytes or more. Requests of nodes to each
            other are signed with it.
        advertise: HOST:PORT at which the other nodes reach this one; all processes of the node have
            the same. None: this process gets blobs from nodes, and gives none.
        listen: HOST:PORT to listen on, if that is not what `advertise` says; an empty host for all
            addresses.
        fan: how many nodes get a blob in flight from one node.
        max_peers: how many nodes one process gives to at one time.
        lease: seconds without a sign of life after which another node pulls from the upstream.
        certfile, keyfile: a certificate in PEM and its key, to talk TLS with the other nodes.
        password: for Redis, if the url has none.
        cafile: the authority in PEM that has signed the certificates of all nodes. With TLS, a node
            that shows no such certificate is refused.

    Raises:
        ValueError: one of these is not valid.
    """

    url: str
    advertise: str | None = None
    secret: str | bytes = field(default=b"", repr=False)
    listen: str | None = None
    fan: int = 2
    max_peers: int = 16
    lease: float = 3.0
    certfile: str | None = None
    keyfile: str | None = None
    cafile: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        if found := list(self._mistakes()):
            raise NotValid(found)

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        """Each setting that is not valid, and what is wrong with it."""
        if not self.url.startswith(_SCHEMES):
            yield "url", f"begins with one of {', '.join(_SCHEMES)}, unlike {self._shown}"
        try:
            check_secret(self.secret)
        except ValueError as error:
            yield "secret", str(error)
        for name, form in (("advertise", _ADDRESS), ("listen", _ANY)):
            if (text := getattr(self, name)) is not None and _parsed(form, text) is None:
                yield name, f"is HOST:PORT or [IPv6]:PORT, not {text[:200]!r}"
        if self.listen is not None and self.advertise is None:
            yield "listen", "goes with advertise: the address that other nodes know"
        for name, least in (("fan", 1), ("max_peers", 1), ("lease", 0.5)):
            if not getattr(self, name) >= least:
                yield name, f"is at least {least}, not {getattr(self, name)}"
        yield from self._mistakes_of_tls()

    def _mistakes_of_tls(self) -> Iterator[tuple[str, str]]:
        for name in ("keyfile", "cafile"):
            if self.certfile is None and getattr(self, name):
                yield name, "goes with certfile"
        if self.certfile is not None and self.cafile is None:
            yield "certfile", "goes with cafile: nodes check each other's certificates"

    @property
    def _shown(self) -> str:
        return public(self.url)

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None if this process gives nothing to others."""
        if self.advertise is None:
            return None
        if self.listen is not None:
            return _parsed(_ANY, self.listen)
        return _parsed(_ADDRESS, self.advertise)

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
        """For TLS as a server, and as a client; None for none.

        Raises:
            OSError: a file cannot be read, or has no certificate or key (`ssl.SSLError`).
        """
        if self.certfile is None or self.cafile is None:
            return None
        import ssl

        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            context.load_cert_chain(self.certfile, self.keyfile)
            context.load_verify_locations(self.cafile)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.verify_mode = ssl.CERT_REQUIRED
        return server, client

    def __repr__(self) -> str:
        return f"<Cluster {self._shown} as {self.advertise or 'a consumer'}>"


def _parsed(form: re.Pattern[str], text: str) -> tuple[str, int] | None:
    """Host and port; None if the text has another form."""
    found = form.fullmatch(text)
    if found is None or not 0 < int(found[3]) <= 65535:
        return None
    return found[1] or found[2] or "", int(found[3])
