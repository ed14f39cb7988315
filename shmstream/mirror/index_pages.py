"""The pages of a Python package index: which files they have, and the same with other links.

    HTML    PEP 503 and 629: the fragment of a link is a hash; `data-core-metadata` (PEP 658, 714)
    JSON    PEP 691: `files` with `url`, `hashes` and `core-metadata`

A link to a file leads to the mirror afterwards, so does a link to another page of the index. All
else stays as it is, byte for byte in HTML.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"

_STRONG = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Hashes that are digests here, and the number of their hex digits."""
_FILE = re.compile(
    r".+\.(?:whl|tar\.gz|tgz|zip|tar\.bz2|tar\.xz|tar\.z|egg|exe|msi|rpm|deb|dmg)", re.IGNORECASE
)
_QUOTED = r"""(?:[^>"']|"[^"]*"|'[^']*')*"""
_TAG = re.compile(rf"<(a|base)\s{_QUOTED}>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s"'<>/=]+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'<>]+))?""")
_METADATA = ("core-metadata", "dist-info-metadata", "data-dist-info-metadata")


@dataclass(frozen=True)
class Link:
    """A file of the index: where it is, and its digest; and the digest of its metadata.

    `digest` is None if the index tells none that is strong. `metadata`: None if there is none,
    empty if there is, without a digest.
    """

    url: str
    digest: str | None = None
    metadata: str | None = None


def is_page(media_type: str | None) -> bool:
    """Whether an answer with that Content-Type is a page of an index."""
    plain = (media_type or "").partition(";")[0].strip().lower()
    return plain in (JSON, HTML, "text/html")


def is_file(url: str) -> bool:
    """Whether a link leads to a file that can be installed."""
    return _FILE.fullmatch(name_of(url)) is not None


def name_of(url: str) -> str:
    """The name of the file behind a URL, as it is written there."""
    return urldefrag(url)[0].partition("?")[0].rpartition("/")[2]


def links(data: bytes, media_type: str | None, page: str) -> dict[str, Link]:
    """The files on a page, by name; `page` is its URL.

    Raises:
        ValueError: it is no page of an index.
    """
    if (media_type or "").partition(";")[0].strip().lower() == JSON:
        return dict(_json_links(_parsed(data), page))
    return dict(_html_links(data.decode("utf-8", "replace"), page))


def relinked(
    data: bytes, media_type: str | None, page: str, to: Callable[[str], str | None]
) -> bytes:
    """The same page, with links to other places.

    `to` gives for a URL without its fragment the new one; None: the link stays, made absolute.

    Raises:
        ValueError: it is no page of an index.
    """
    if (media_type or "").partition(";")[0].strip().lower() == JSON:
        found = _parsed(data)
        for each in found.get("files", ()):
            url, fragment = urldefrag(urljoin(page, str(each["url"])))
            each["url"] = _whole(to(url) or url, fragment)
        return json.dumps(found).encode()
    return _relinked_html(data.decode("utf-8", "surrogateescape"), page, to)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
        for each in found.get("files", ()):
            _ = str(each["filename"]), str(each["url"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no page of an index: {error!r}") from None
    return dict(found)


def _json_links(found: Mapping[str, Any], page: str) -> Iterator[tuple[str, Link]]:
    for each in found.get("files", ()):
        url = urldefrag(urljoin(page, str(each["url"])))[0]
        told = next((each[name] for name in _METADATA if each.get(name)), None)
        metadata = None if told is None else _digest(told if isinstance(told, dict) else {}) or ""
        yield unquote(name_of(url)), Link(url, _digest(each.get("hashes") or {}), metadata)


def _html_links(text: str, page: str) -> Iterator[tuple[str, Link]]:
    base = page
    for tag in _TAG.finditer(text):
        found = _attributes(tag[0])
        if (href := found.get("href")) is None:
            continue
        if tag[1].lower() == "base":
            base = urljoin(page, href)
            continue
        url, fragment = urldefrag(urljoin(base, href))
        told = next((found[name] for name in ("data-core-metadata", "data-dist-info-metadata")
                     if name in found), None)  # fmt: skip
        metadata = None if told is None else _digest(_hash(told)) or ""
        yield unquote(name_of(url)), Link(url, _digest(_hash(fragment)), metadata)


def _relinked_html(text: str, page: str, to: Callable[[str], str | None]) -> bytes:
    base = page

    def again(tag: re.Match[str]) -> str:
        nonlocal base
        href = _attributes(tag[0]).get("href")
        if href is None:
            return tag[0]
        if tag[1].lower() == "base":
            base = urljoin(page, href)
            return ""
        url, fragment = urldefrag(urljoin(base, href))
        return _with_href(tag[0], _whole(to(url) or url, fragment))

    return _TAG.sub(again, text).encode("utf-8", "surrogateescape")


def _attributes(tag: str) -> dict[str, str]:
    inner = tag.split(None, 1)[1].rstrip(">") if " " in tag or "\n" in tag or "\t" in tag else ""
    found = _ATTRIBUTE.findall(inner)
    return {name.lower(): html.unescape(value.strip("\"'")) for name, value in found}


def _with_href(tag: str, url: str) -> str:
    def again(found: re.Match[str]) -> str:
        return f'{found[1]}="{html.escape(url)}"' if found[1].lower() == "href" else found[0]

    head, gap, inner = re.split(r"(\s+)", tag, maxsplit=1)
    return head + gap + _ATTRIBUTE.sub(again, inner)


def _hash(text: str) -> dict[str, str]:
    name, _, value = text.partition("=")
    return {name: value}


def _digest(hashes: Mapping[str, object]) -> str | None:
    for name, count in _STRONG.items():
        value = hashes.get(name)
        if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{count}}}", value):
            return f"{name}:{value.lower()}"
    return None


def _whole(url: str, fragment: str) -> str:
    return f"{url}#{fragment}" if fragment else url


def normalized(project: str) -> str:
    """The name of a project as the URLs of an index have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", unquote(project)).lower()
