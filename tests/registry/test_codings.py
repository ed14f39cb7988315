"""Content-Encoding: what the label says is true or not, and only the digest can tell."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from shmstream import Store
from shmstream.errors import SourceError
from shmstream.sources import http_coding
from shmstream.sources.http import HTTPSource
from tests.support.images import OCI_MANIFEST, digest_of, image, layer
from tests.support.quirks import Asked, Quirks, Reply, Script, plain
from tests.support.registries import Registry
from tests.support.roles import content

Wrap = Callable[[Script], Script]
LABELS = ["gzip", "x-gzip", "GZIP", "deflate", "br", "aws-chunked", "", "UTF-8", "identity",
          "aws-chunked,gzip", "gzip, gzip"]  # fmt: skip
BLOBS = {
    "compressed layer": gzip.compress(layer(600, 50_000), 1),
    "compressed noise": gzip.compress(content(601, 50_000), 1),
    "layer": layer(602, 50_000),
    "noise": content(603, 50_000),
    "text": b'{"architecture": "amd64"}' * 1000,
    "little": b"{}",
    "begins as gzip": b"\x1f\x8b" + content(604, 1000),
}


def labelled(there: Script, label: str) -> Script:
    """All of it has that label, and is as it is."""
    return lambda asked: there(asked).but(Content_Encoding=label)


def encoded(there: Script, label: str = "gzip") -> Script:
    """All of it is compressed, parts of it, too; as it is sent to a client that wants no coding."""

    def script(asked: Asked) -> Reply:
        reply = there(replace(asked, headers={}))
        if reply.status != 200:
            return reply
        body = zlib.compress(reply.body) if label == "deflate" else gzip.compress(reply.body, 1)
        return replace(reply.but(Content_Encoding=label), body=body)

    return script


def salted(salt: str) -> dict[str, bytes]:
    """The blobs, with other bytes for each test: what one test has brought is in the store."""
    found = {}
    for kind, data in BLOBS.items():
        plain_data = gzip.decompress(data) if "compressed" in kind else data
        salty = plain_data + salt.encode()
        found[kind] = gzip.compress(salty, 1) if "compressed" in kind else salty
    return found


def pull_all(
    through: Registry, quirks: Quirks, name: str, wrap: Callable[[Script], Script]
) -> None:
    """All blobs, and an image by its tag and its digest, in two repositories."""
    blobs, what = salted(name), image(600 + len(name), [1000])
    quirks.script = wrap(plain(what, blobs=blobs.values()))
    for each in (f"{name}/a", f"{name}/b"):  # of the second, all is in the store
        for kind, data in blobs.items():
            path = f"/v2/{each}/blobs/{digest_of(data)}"
            assert through.head(path).status == 200, kind
            assert through.get(path).body == data, kind
        for reference in ("v1", what.digest):
            path = f"/v2/{each}/manifests/{reference}"
            assert through.head(path).headers["docker-content-digest"] == what.digest
            answer = through.get(path)
            assert (answer.body, answer.headers["content-type"]) == (what.manifest, OCI_MANIFEST)
            assert "content-encoding" not in answer.headers
        assert json.loads(through.get(f"/v2/{each}/tags/list").body)["tags"] == ["v1"]


@pytest.mark.parametrize("label", LABELS)
def test_bytes_as_they_are(through: Registry, quirks: Quirks, label: str) -> None:
    name = f"label{LABELS.index(label)}"
    pull_all(through, quirks, name, lambda there: labelled(there, label))


@pytest.mark.parametrize("label", ["gzip", "x-gzip", "deflate"])
def test_bytes_that_are_encoded(through: Registry, quirks: Quirks, label: str) -> None:
    pull_all(through, quirks, f"encoded/{label}", lambda there: encoded(there, label))


@pytest.mark.parametrize("is_true", [True, False])
def test_a_connection_that_ends_in_the_middle(
    through: Registry, quirks: Quirks, is_true: bool
) -> None:
    """The rest of what is no more than said to be encoded is a part; of the other there is none."""
    data = gzip.compress(content(610 + is_true, 400_000), 1)
    there = plain(blobs=[data])
    wrapped = encoded(there) if is_true else labelled(there, "gzip")
    cuts = iter([150_000, 300_000])

    def script(asked: Asked) -> Reply:
        return replace(wrapped(asked), cut=next(cuts, None))

    quirks.script = script
    assert through.get(f"/v2/cut/app{is_true}/blobs/{digest_of(data)}".lower()).body == data


def read(source: HTTPSource, offset: int = 0) -> bytes:
    with source.open(offset) as feed:
        assert feed.offset in (0, offset)
        return b"".join(bytes(each) for each in feed)[max(offset - feed.offset, 0) :]


@pytest.mark.parametrize("kind", BLOBS)
def test_bodies_that_are_too_large_to_wait_for(
    quirks: Quirks, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their first bytes have to tell. What cannot be told is taken as what is usual."""
    monkeypatch.setattr(http_coding, "LARGEST", 1 << 12)
    data = BLOBS[kind]
    url = f"{quirks.url}/v2/a/blobs/{digest_of(data)}"
    there = plain(blobs=[data])
    for wrap, is_unusual in (
        (encoded, kind == "layer"),
        (lambda there: labelled(there, "gzip"), kind == "compressed noise"),
    ):
        quirks.script = wrap(there)
        found = read(HTTPSource(url, digest=digest_of(data)))
        assert (found == data) is not is_unusual


def test_what_is_read_on_after_a_part(quirks: Quirks) -> None:
    data = BLOBS["compressed layer"]
    url, key = f"{quirks.url}/v2/a/blobs/{digest_of(data)}", digest_of(data)
    for wrap in (encoded, lambda there: labelled(there, "gzip")):
        quirks.script = wrap(plain(blobs=[data]))
        source = HTTPSource(url, digest=key)
        assert read(source) == data
        assert read(source, 1000) == data[1000:]
        assert read(HTTPSource(url, digest=key), 1000) == data[1000:]


def test_without_a_digest_nobody_can_tell(quirks: Quirks) -> None:
    data = BLOBS["compressed layer"]
    url = f"{quirks.url}/v2/a/blobs/{digest_of(data)}"
    for label in LABELS:
        quirks.script = labelled(plain(blobs=[data]), label)
        if label in ("", "identity", "aws-chunked", "UTF-8"):
            assert read(HTTPSource(url)) == data
        else:
            with pytest.raises(SourceError, match="content-encoding"):
                HTTPSource(url).open()


def test_a_store_takes_what_is_encoded(folder: str, quirks: Quirks) -> None:
    """A key that is a digest tells the source what to look for; a name with a digest does, too."""
    cases: list[tuple[bytes, Wrap]] = [
        (gzip.compress(b"1" + content(630, 5000), 1), lambda there: labelled(there, "x-gzip")),
        (b"2" + content(630, 5000), encoded),
        (gzip.compress(b"3" + content(630, 5000), 1), encoded),
    ]
    for number, (data, wrap) in enumerate(cases):
        quirks.script = wrap(plain(blobs=[data]))
        store, key = Store(folder), digest_of(data)
        url = f"{quirks.url}/v2/a/blobs/{key}"
        with store.open(key, url) as blob:
            assert blob.read() == data
        with store.open(f"name-{number}", url, digest=key) as blob:
            assert blob.read() == data
        with store.open(key, HTTPSource(url, digest=key)) as blob:
            assert blob.read() == data


def test_encoded_bytes_that_are_none(quirks: Quirks) -> None:
    """The body ends in the middle, or has other bytes after its beginning."""
    data = gzip.compress(content(620, 100_000), 1)
    there = plain(blobs=[data])
    for body in (gzip.compress(data, 1)[:-1000], gzip.compress(data, 1)[:1000] + bytes(99_000)):

        def script(asked: Asked, body: bytes = body) -> Reply:
            return replace(there(asked).but(Content_Encoding="gzip"), body=body)

        quirks.script = script
        found = read(
            HTTPSource(f"{quirks.url}/v2/a/blobs/{digest_of(data)}", digest=digest_of(data))
        )
        assert found == body, "as it is: its digest will show that it is wrong"
