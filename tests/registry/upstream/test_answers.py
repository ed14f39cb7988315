"""What is a manifest, an index, a list of tags or a token, and what only looks like one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.registry.upstream import answers
from shmstream.registry.upstream.answers import InvalidAnswer
from tests.support import images
from tests.support.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
LAYER = {"mediaType": "application/x", "digest": DIGEST, "size": 5}
IMAGE = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": LAYER, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [LAYER]}
SIGNED = {"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": DIGEST}]}
ARTIFACT = {"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": [LAYER]}
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title>\x1b[2J</html>"
ERRORS = {"errors": [{"code": "DENIED", "message": "not\nfor \x1b[1myou"}]}


def with_(whole: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {**whole, **fields}


def without(whole: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name != field}


_SIZES: list[int | None] = [0, -1, 2**63 - 1, None]
MANIFESTS: list[tuple[dict[str, Any], str | None]] = [
    (json.loads(images.image(1, [10]).manifest), OCI_MANIFEST),
    (json.loads(images.image(1, [10], DOCKER_MANIFEST).manifest), None),
    (json.loads(images.index({"a": images.image(1, [1])}, DOCKER_LIST).manifest), "text/plain"),
    (IMAGE, None),
    (INDEX, "text/html"),
    (without(IMAGE, "mediaType"), None),
    (without(INDEX, "mediaType"), "application/json"),
    (with_(IMAGE, layers=None), None),
    (with_(INDEX, manifests=[without(LAYER, "size")]), None),
    (with_(IMAGE, layers=[with_(LAYER, digest="blake3:0123456789abcdef")]), None),
    *((with_(IMAGE, layers=[with_(LAYER, size=size)]), None) for size in _SIZES),
    *((with_(INDEX, manifests=[with_(LAYER, size=size)]), None) for size in _SIZES),
    (with_(IMAGE, config=without(LAYER, "size"), layers=[without(LAYER, "size")]), None),
    (with_(IMAGE, layers=[with_(LAYER, mediaType=None, artifactType=None)]), None),
    (with_(IMAGE, mediaType="", artifactType=None), OCI_MANIFEST),
    (without(IMAGE, "schemaVersion"), None),
    (without(INDEX, "schemaVersion"), None),
    (with_(IMAGE, subject=LAYER, artifactType="a/b"), None),
    (SIGNED, None),
    (ARTIFACT, None),
    ({"made": "up"}, "application/vnd.example+json; charset=utf-8"),
    ({"made": "up", "mediaType": "application/vnd.example+json"}, None),
]


def test_manifests() -> None:
    for what, told in MANIFESTS:
        assert answers.manifest(json.dumps(what).encode(), told) == what


_NO_SIZES: list[object] = ["5", -2, 5.0, True, 2**63, []]
NONE: list[object] = [
    ERRORS,
    {},
    [],
    "a text",
    None,
    {"schemaVersion": 2},
    {"schemaVersion": 2, "mediaType": OCI_MANIFEST},
    with_(IMAGE, schemaVersion=1),
    with_(IMAGE, schemaVersion="2"),
    with_(IMAGE, schemaVersion=True),
    with_(IMAGE, mediaType="text/html\r\nX-Evil: 1"),
    with_(IMAGE, mediaType=7),
    with_(IMAGE, mediaType=OCI_INDEX),
    with_(INDEX, mediaType=OCI_MANIFEST),
    with_(IMAGE, manifests=[LAYER]),
    with_(INDEX, layers=[LAYER]),
    without(IMAGE, "config"),
    without(IMAGE, "layers"),
    with_(IMAGE, layers={}),
    with_(IMAGE, layers=[DIGEST]),
    *(with_(IMAGE, layers=[with_(LAYER, size=size)]) for size in _NO_SIZES),
    *(with_(INDEX, manifests=[with_(LAYER, size=size)]) for size in _NO_SIZES),
    *(
        with_(IMAGE, config=with_(LAYER, digest=digest))
        for digest in (None, 5, "", "sha256:..", "sha256:" + "A" * 64, "../../etc/passwd")
    ),
    with_(IMAGE, layers=[with_(LAYER, mediaType=5)]),
    with_(SIGNED, fsLayers=[{"blobSum": "x"}]),
    with_(ARTIFACT, blobs=[5]),
]


def test_a_manifest_whose_text_is_no_utf8() -> None:
    """All clients that are written in Go read it."""
    text = json.dumps(with_(IMAGE, annotations={"by": "\xe9"}), ensure_ascii=False)
    assert answers.manifest(text.encode("latin-1"))["layers"] == [LAYER]


def test_what_is_no_manifest() -> None:
    for told in (None, OCI_MANIFEST, OCI_INDEX, "application/json", "text/html"):
        for what in NONE:
            with pytest.raises(InvalidAnswer, match="its answer is no manifest"):
                answers.manifest(json.dumps(what).encode(), told)


def test_pages_and_errors_are_none_and_tell_what_they_say() -> None:
    judges: list[Callable[[bytes], object]] = [
        answers.manifest, answers.index, answers.tags, answers.token,
    ]  # fmt: skip
    for judge in judges:
        with pytest.raises(InvalidAnswer) as caught:
            judge(PAGE)
        assert "<!DOCTYPE html> <html><title>Sign in</title>\\x1b[2J" in str(caught.value)
        with pytest.raises(InvalidAnswer) as caught:
            judge(json.dumps(ERRORS).encode())
        assert "DENIED: not for \\x1b[1myou" in str(caught.value)
        for text in (b"", b"\xff\xfe", b"[" * 100_000, b"x" * 100_000):
            with pytest.raises(InvalidAnswer) as caught:
                judge(text)
            assert len(str(caught.value)) < 400


def test_indexes() -> None:
    assert answers.index(json.dumps(INDEX).encode())["manifests"] == [LAYER]
    assert answers.index(b'{"manifests": null}')["manifests"] is None
    wrong: list[object] = [
        IMAGE,
        {"manifests": {}},
        {"manifests": [5]},
        with_(INDEX, schemaVersion=3),
    ]
    for what in wrong:
        with pytest.raises(InvalidAnswer, match="its answer is no index"):
            answers.index(json.dumps(what).encode())


def test_tags() -> None:
    found = answers.tags(b'{"name": "a", "tags": ["v1", "a b", "", "\\u001b[2J"], "child": []}')
    assert found == {"name": "a", "tags": ["v1"], "child": []}
    assert answers.tags(b'{"tags": null}') == {"tags": None}
    for text in (b"{}", b'{"tags": "v1"}', b'{"tags": [1]}', b'["v1"]', b'{"tags": {"a": 1}}'):
        with pytest.raises(InvalidAnswer, match="its answer is no list of tags"):
            answers.tags(text)


TOKENS = [
    ({"token": "a.b-c"}, ("a.b-c", 60.0)),
    ({"access_token": "x", "expires_in": 300}, ("x", 300.0)),
    ({"token": "", "access_token": "x", "expires_in": "300"}, ("x", 300.0)),
    ({"token": "x", "expires_in": 0}, ("x", 60.0)),
    ({"token": "x", "expires_in": -5}, ("x", 60.0)),
    ({"token": "x", "expires_in": float("inf")}, ("x", 60.0)),
    ({"token": "x", "expires_in": 1e9}, ("x", 86400.0)),
]


def test_tokens() -> None:
    for facts, expected in TOKENS:
        assert answers.token(json.dumps(facts).encode()) == expected
    wrong: list[dict[str, object]] = [
        {}, {"token": 5}, {"token": ["x"]}, {"token": "a b"}, {"token": "a\nb"},
        {"token": "\u00e9"}, {"token": "x" * 70_000}, {"token": "x", "expires_in": "soon"},
        {"token": "x", "expires_in": [1]}, {"token": "x", "expires_in": 10**400},
    ]  # fmt: skip
    for facts in wrong:
        with pytest.raises(InvalidAnswer, match="its answer is no token"):
            answers.token(json.dumps(facts).encode())


def test_an_error_repeats_no_secret() -> None:
    for facts in ({"token": "s3cret\n"}, {"token": "s3cret", "expires_in": "s3cret"}):
        with pytest.raises(InvalidAnswer) as caught:
            answers.token(json.dumps(facts).encode())
        assert "s3cret" not in str(caught.value)


@given(some.binary(max_size=300))
@example(b'{"manifests": [[]]}')
@example(b'{"errors": [[]], "mediaType": []}')
def test_whatever_an_answer_is(data: bytes) -> None:
    judges: list[Callable[[bytes], object]] = [
        answers.manifest, answers.index, answers.tags, answers.token,
    ]  # fmt: skip
    for judge in judges:
        shown = ""
        try:
            judge(data)
        except InvalidAnswer as error:
            shown = str(error)
        assert shown.isprintable()
