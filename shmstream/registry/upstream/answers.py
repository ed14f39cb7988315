"""What an upstream may answer, by kind. An answer of another kind is an error, and is never kept.

    manifest    a JSON object: an image, an index, or another kind of manifest, each with its fields
    index       a manifest with a list of manifests
    tags        a JSON object with a list of tags
    token       a JSON object with a token, and perhaps with its life in seconds

A server in between may answer with a page to log in, and a registry with its own JSON of errors,
both with the status 200. Such an answer looks like success, and clients would keep it. So every
answer is judged by its bytes. `InvalidAnswer` has the first words of the answer: often they tell
what is wrong. They are cleaned, because people read them on terminals.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shmstream.errors import SourceError, escaped
from shmstream.registry.upstream.manifests import IMAGE, INDEX, SIGNED, media_type
from shmstream.stream.digest import is_digest

Json = dict[str, Any]

REFUSED = (401, 403, 404, 410)
"""Statuses that mean a no: what was granted and known before counts no longer."""

TOKEN_LIFE = 60.0
"""Seconds; the life of a token whose answer tells none, as the specification of Docker says."""

OURS = (407, 408, 421, 425, 431)
"""Statuses of a request that is not the client's, but this cache's own."""

_DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"

_VENDORS = re.compile(r"application/vnd\.[^;]+\+(?:json|prettyjws)", re.IGNORECASE)
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]{8,256}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_LARGEST_SIZE = 2**63 - 1  # bytes; clients keep sizes in 64 bits
_UNKNOWN_SIZE = -1  # as some tools write it
_WORDS = 200  # characters of an answer that an error repeats
_LONGEST_LIFE = 24 * 3600.0  # s; of a token


class InvalidAnswer(ValueError):
    """An answer is not what it is said to be. The text tells why, in the answer's own words."""


@dataclass(eq=False)
class BadAnswer(SourceError):
    """The upstream's answer is not what it is said to be. Clients may read the `reason`."""


@dataclass(eq=False)
class Page(SourceError):
    """A page instead of a blob: there is none here, but that is not the word of a registry."""

    retryable: bool = False
    status: int | None = 404


@dataclass(eq=False)
class Hidden(SourceError):
    """A 404 to a client without credentials, of a registry that may hide what is there from it."""

    retryable: bool = False
    status: int | None = 401


@dataclass(eq=False)
class Unkept(SourceError):
    """The upstream has this manifest, and its bytes have not the digest that names it.

    So nothing can be kept. A client gets what the upstream answers to the same question. Its status
    makes it no failure of the upstream, and no warning.
    """

    retryable: bool = False
    status: int | None = 406


def is_no(status: int | None) -> bool:
    """Whether a status refuses what a client asks for, so that no older answer counts."""
    return status is not None and 400 <= status <= 499 and status not in (*OURS, 429)


def looks_like_a_manifest(told: str | None) -> bool:
    """Whether a Content-Type is that of a manifest. If not, only the bytes can tell."""
    return told is not None and _VENDORS.match(told.strip()) is not None


def is_page(told: str | None) -> bool:
    """Whether a Content-Type is that of an HTML page."""
    plain = (told or "").partition(";")[0].strip().lower()
    return plain in ("text/html", "application/xhtml+xml")


# Manifests.


def manifest(data: bytes, told: str | None = None) -> Json:
    """The manifest or index in `data`; `told` is the media type that the upstream declares.

    A manifest of a kind that is not known here needs a media type that says what it is.

    Raises:
        InvalidAnswer: it is none, or lacks what its kind must have.
    """
    found = _object(data, "manifest")
    kind = _kind_of(found, told)
    try:
        _CHECKS.get(kind, _check_other)(found)
    except InvalidAnswer as error:
        raise InvalidAnswer(f"its answer is no manifest: {error}: {_words(data)}") from None
    return found


def index(data: bytes) -> Json:
    """The list of manifests in `data`, such as those that refer to another one.

    Raises:
        InvalidAnswer: it is none.
    """
    found = _object(data, "index")
    try:
        _check_index(found)
    except InvalidAnswer as error:
        raise InvalidAnswer(f"its answer is no index: {error}: {_words(data)}") from None
    return found


def _kind_of(found: Json, told: str | None) -> str:
    """The media type that decides which fields it must have; empty if nothing tells."""
    named = found.get("mediaType")
    if isinstance(named, str) and named and named in _CHECKS:
        return named
    if "manifests" in found:
        return INDEX
    if "layers" in found:
        return IMAGE
    if "fsLayers" in found:
        return SIGNED[0]
    declared = media_type(named) or media_type(told) or ""
    return declared if looks_like_a_manifest(declared) else ""


def _check_image(found: Json) -> None:
    _check_version(found, 2)
    _check_lacks(found, "manifests")
    _check_descriptor(found.get("config"), "config")
    for each in _list(found, "layers"):
        _check_descriptor(each, "layer")


def _check_index(found: Json) -> None:
    _check_version(found, 2)
    _check_lacks(found, "layers", "config", "fsLayers")
    for each in _list(found, "manifests"):
        _check_descriptor(each, "manifest")


def _check_signed(found: Json) -> None:
    """The first kind of Docker's manifests, which has no sizes."""
    _check_version(found, 1)
    _check_lacks(found, "manifests", "layers")
    for each in _list(found, "fsLayers"):
        if not isinstance(each, dict) or not _is_any_digest(each.get("blobSum")):
            raise InvalidAnswer("a layer has no digest")


def _check_artifact(found: Json) -> None:
    _check_lacks(found, "manifests", "layers")
    for each in _list(found, "blobs") if "blobs" in found else ():
        _check_descriptor(each, "blob")


def _check_untold(_: Json) -> None:
    raise InvalidAnswer("it does not tell of which kind it is")


def _check_other(found: Json) -> None:
    """A kind that is not known here."""
    _check_lacks(found, "errors")


_CHECKS = {
    "": _check_untold,
    IMAGE: _check_image,
    _DOCKER_IMAGE: _check_image,
    INDEX: _check_index,
    _DOCKER_LIST: _check_index,
    SIGNED[0]: _check_signed,
    SIGNED[1]: _check_signed,
    _ARTIFACT: _check_artifact,
}
"""What a manifest must have, by media type."""


def _check_version(found: Json, version: int) -> None:
    """Some tools leave the version 2 out, or the media type empty; clients in Go do not mind."""
    told = found.get("schemaVersion", 2)
    if type(told) is not int or told != version:
        raise InvalidAnswer(f"its schemaVersion is not {version}")
    named = found.get("mediaType")
    if named not in (None, "") and media_type(named) is None:
        raise InvalidAnswer("its mediaType is none")


def _check_lacks(found: Json, *fields: str) -> None:
    """Refuse what may be taken for two kinds at once: clients would not agree what it is."""
    for each in fields:
        if found.get(each):
            raise InvalidAnswer(f"it has `{each}`")


def _list(found: Json, field: str) -> list[object]:
    """A list; a null is an empty one, as programs in Go write it."""
    entries = found.get(field, ())
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidAnswer(f"it has no list of `{field}`")
    return entries


def _check_descriptor(each: object, what: str) -> None:
    if not isinstance(each, dict) or not _is_any_digest(each.get("digest")):
        raise InvalidAnswer(f"a {what} has no digest")
    size = each.get("size")
    if size is not None and (type(size) is not int or not _UNKNOWN_SIZE <= size <= _LARGEST_SIZE):
        raise InvalidAnswer(f"the size of a {what} is no number of bytes")
    for name in ("mediaType", "artifactType"):
        if not isinstance(each.get(name), str | None):
            raise InvalidAnswer(f"the {name} of a {what} is no text")


def _is_any_digest(text: object) -> bool:
    """Whether `text` is a digest, perhaps of an algorithm that is not known here."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        return False
    return is_digest(text) or not text.startswith(("sha256:", "sha512:"))


# Lists of tags, and tokens.


def tags(data: bytes) -> Json:
    """The list of tags in `data`, without tags that nobody can ask for.

    Raises:
        InvalidAnswer: it is none.
    """
    found = _object(data, "list of tags")
    entries = found.get("tags", ())
    is_list = entries is None or isinstance(entries, list)
    if not is_list or not all(isinstance(each, str) for each in entries or ()):
        raise InvalidAnswer(f"its answer is no list of tags: {_words(data)}")
    if entries is not None:
        found["tags"] = [each for each in entries if _TAG.fullmatch(each)]
    return found


def token(data: bytes) -> tuple[str, float]:
    """The token in `data`, and its life in seconds.

    Raises:
        InvalidAnswer: it is none. The text repeats nothing of an object that may have a secret.
    """
    found = _object(data, "token")
    value = found.get("token") or found.get("access_token")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        said = "" if value else f": {_words(data)}"
        raise InvalidAnswer(f"its answer is no token{said}")
    try:
        life = float(found.get("expires_in") or TOKEN_LIFE)
    except (ValueError, TypeError, OverflowError):
        raise InvalidAnswer("its answer is no token: the token's life is no number") from None
    if not (math.isfinite(life) and life > 0):
        life = TOKEN_LIFE
    return value, min(life, _LONGEST_LIFE)


# What an answer says.


def _object(data: bytes, what: str) -> Json:
    try:
        found = json.loads(data.decode("utf-8", "replace"))  # as clients in Go read it
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidAnswer(f"its answer is no {what}: {_words(data)}")
    return found


def refusal(text: str) -> str:
    """What the text of a refusal says to people, on one line."""
    return _words(text.encode()) if text else ""


def _words(data: bytes) -> str:
    """The first words of an answer, on one line: of errors in JSON what they say, else the text."""
    text = data[: 8 * _WORDS].decode("utf-8", "replace")
    try:
        found = json.loads(data, strict=False)  # it may have control characters
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        text = _said(found) or text
    text = " ".join(text.split())
    shown = escaped(text[:_WORDS]) + ("..." if len(text) > _WORDS else "")
    return shown or "it is empty"


def _said(found: Mapping[str, object]) -> str:
    """The message of an error in JSON, as registries and other servers write it."""
    errors = found.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else found
    if isinstance(first, str):
        return first
    if not isinstance(first, dict):
        return ""
    names = ("code", "error", "message", "details", "error_description")
    return ": ".join(str(first[each]) for each in names if isinstance(first.get(each), str | int))
