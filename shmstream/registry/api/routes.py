"""What a request asks for, decided from its method, path and query alone.

    /v2/                                 whether this is a registry
    /v2/<name>/manifests/<tag|digest>    an image manifest or index
    /v2/<name>/blobs/<digest>            a layer, or any other blob
    /v2/<name>/tags/list                 the tags of a repository
    /v2/<name>/referrers/<digest>        the artifacts that refer to a manifest

Percent-escapes are decoded once, then every part is matched against the grammar of the distribution
specification. A request that does not match is refused here, so no other text can become part of a
path on this machine or of a request to an upstream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote

from shmstream.registry.api.errors import Code, Refusal
from shmstream.registry.upstream.credentials import is_hub
from shmstream.stream.digest import is_digest

T = TypeVar("T")
Found = TypeVar("Found", covariant=True)


class Named(Protocol[Found]):
    """What knows upstreams by namespace: a mapping, or `Upstreams`."""

    def get(self, namespace: str | None, /) -> Found | None:
        """The upstream of a namespace; None if there is none."""


_NEEDED = "this cache needs a namespace"

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_ENCODED_SEPARATOR = re.compile(r"%(?:2f|5c|00)", re.IGNORECASE)
_LONGEST_PATH = 1024  # bytes; a name of 255, a digest of 135, and room for escapes
_LONGEST_NAME = 255
_LONGEST_QUERY = 2048  # bytes


class Kind(StrEnum):
    """The kind of a request; also the name of its route in metrics and logs."""

    BASE = "base"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"


_KIND_OF = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS}


@dataclass(frozen=True)
class Route:
    """What a request asks for.

    Attributes:
        kind: the kind of the request.
        name: the name of the repository, as the client writes it.
        reference: a tag or a digest.
        namespace: the registry that the client means (`?ns=`); None if it names none.
        query: the other parameters, in order.
    """

    kind: Kind
    name: str = ""
    reference: str = ""
    namespace: str | None = None
    query: tuple[tuple[str, str], ...] = ()

    @property
    def is_digest(self) -> bool:
        """Whether the reference is a digest."""
        return is_digest(self.reference)


def route(method: str, raw_path: bytes, query: bytes) -> Route:
    """What a request asks for.

    Raises:
        Refusal: the request asks for nothing that can exist.
    """
    if method not in ("GET", "HEAD"):
        message = "this is a cache: it gives, and takes nothing"
        raise Refusal(405, Code.UNSUPPORTED, message, headers={"allow": "GET, HEAD"})
    namespace, parameters = _query(query)
    path = _path(raw_path)
    if path in ("/v2", "/v2/"):
        return Route(Kind.BASE)
    parts = path.removeprefix("/v2/").split("/")
    if not path.startswith("/v2/") or len(parts) < 2:
        _nothing(path)
    where, last = parts[-2:]
    if [where, last] == ["tags", "list"]:
        kind, last = Kind.TAGS, ""
    elif where in _KIND_OF:
        kind = _KIND_OF[where]
    else:
        _nothing(path)
    name = "/".join(parts[:-2])
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise Refusal(400, Code.NAME_INVALID, "not a name of a repository", {"name": name[:300]})
    if kind is not Kind.TAGS:
        _check_reference(kind, last)
    if kind is Kind.TAGS and not _NUMBER.fullmatch(dict(parameters).get("n", "0")):
        raise Refusal(400, Code.UNSUPPORTED, "n is a number of tags")
    return Route(kind, name, last, namespace, parameters)


def _nothing(path: str) -> NoReturn:
    raise Refusal(404, Code.UNSUPPORTED, "there is nothing of that kind", {"path": path[:300]})


def _path(raw: bytes) -> str:
    text = raw.decode("latin-1")
    if len(text) > _LONGEST_PATH:
        raise Refusal(400, Code.NAME_INVALID, "no name and no reference is that long")
    if _ENCODED_SEPARATOR.search(text):  # servers do not agree whether these are separators
        raise Refusal(400, Code.NAME_INVALID, "an encoded slash, backslash or NUL")
    return unquote(text, errors="replace")


def _query(raw: bytes) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The namespace, and the other parameters."""
    if not raw:
        return None, ()
    try:
        if len(raw) > _LONGEST_QUERY:
            raise ValueError("too long")
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise Refusal(400, Code.UNSUPPORTED, f"such a query is not understood: {error}") from None
    namespaces = [value for name, value in pairs if name == "ns"]
    return namespaces[0] if namespaces else None, tuple(
        (name, value) for name, value in pairs if name != "ns"
    )


def _check_reference(kind: Kind, reference: str) -> None:
    if is_digest(reference):
        return
    if kind is not Kind.MANIFEST or ":" in reference:
        message = "a digest is sha256: or sha512: and 64 or 128 lower-case hex digits"
        raise Refusal(400, Code.DIGEST_INVALID, message, {"digest": reference[:300]})
    if not _TAG.fullmatch(reference):
        message = "no manifest can have such a tag"
        raise Refusal(404, Code.MANIFEST_UNKNOWN, message, {"tag": reference[:300]})


def canonical(namespace: str) -> str:
    """The usual name of a registry, which has several, and may be written with its port."""
    host, _, port = namespace.lower().partition(":")
    number = port.lstrip("0") if port.isascii() and port.isdigit() else port
    plain = host if number in ("", "443") else f"{host}:{number}"
    return "docker.io" if is_hub(plain) else plain


def locate(upstreams: Named[T], asked: Route) -> tuple[T, str]:
    """Which upstream a request means, and the name of the repository there.

    A client names the upstream by `?ns=`, as containerd does, or by the first part of the name, as
    in `docker.io/library/debian`. If it names none, it means the upstream without a namespace. A
    first part that looks like the host of a registry names one, also if it is not configured: the
    upstream without a namespace would give another image of that name.

    Raises:
        Refusal: there is no such upstream.
    """
    first, slash, rest = asked.name.partition("/")
    if asked.namespace is not None:
        found, name = _known(upstreams, asked.namespace), asked.name
    elif slash and (found := _known(upstreams, first)) is not None:
        name = rest
    elif slash and _is_host(first):
        found, name = None, rest
    else:
        found, name = upstreams.get(None), asked.name
    if found is None:
        where = asked.namespace or (first if slash and _is_host(first) else None)
        message = _NEEDED if where is None else f"this cache has no upstream for {where[:300]}"
        raise Refusal(404, Code.NAME_UNKNOWN, message, {"name": asked.name})
    return found, name


def _is_host(part: str) -> bool:
    """Whether the first part of a name is that of a registry, as Docker and podman understand it.

    Names at the upstream without a namespace that begin so need the host of the upstream before.
    """
    return "." in part or part == "localhost"


def _known(upstreams: Named[T], namespace: str) -> T | None:
    """The upstream of that namespace, in whichever way a client writes its name."""
    plain = namespace.lower()
    return upstreams.get(plain) or upstreams.get(canonical(plain))
