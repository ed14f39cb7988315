"""Upstreams whose answers look like success and are none: nothing of it is served or kept."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tests.registry.test_registry_faults import serve_manifest
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Image, digest_of, image, index
from tests.support.origin import Origin
from tests.support.registries import Answer, Registry
from tests.support.roles import content
from tests.support.stores import digest

PAGE = "<!DOCTYPE html><html><title>Sign in\x1b[2J</title></html>"
ERRORS = json.dumps({"errors": [{"code": "DENIED", "message": "pay \x07first"}]})
NONE = f"sha256:{'0' * 64}"


def message(answer: Answer) -> str:
    """What a refusal says to people."""
    (error,) = json.loads(answer.body)["errors"]
    assert answer.status == 502
    assert "etag" not in answer.headers
    assert "docker-content-digest" not in answer.headers
    assert error["message"].isprintable()
    return str(error["message"])


def test_what_is_no_manifest_is_not_served(ours: Registry, origin: Origin) -> None:
    """By its tag and by its digest, with and without a header that tells the digest."""
    facts = json.loads(image(200, [10]).manifest)
    facts["config"]["size"] = str(facts["config"]["size"])
    cases = [
        (PAGE, "text/html", "Sign in\\x1b[2J"),
        (PAGE, OCI_MANIFEST, "Sign in\\x1b[2J"),
        (ERRORS, "application/json", "DENIED: pay \\x07first"),
        (ERRORS, OCI_MANIFEST, "DENIED: pay \\x07first"),
        ("{}", OCI_INDEX, "no manifest"),
        (json.dumps({"schemaVersion": 2}), "application/json", "no manifest"),
        (json.dumps(facts), OCI_MANIFEST, "the size of a config is no number"),
    ]
    here = "/v2/fault.test/fake/app/manifests"
    for number, (text, kind, expected) in enumerate(cases):
        tag = f"v{number}"
        name = serve_manifest(origin, "fake/app", tag, text, kind)
        assert expected in message(ours.get(f"{here}/{tag}"))
        assert expected in message(ours.get(f"{here}/{name}"))
        origin.change(f"/v2/fake/app/manifests/{tag}", headers={})
        assert expected in message(ours.get(f"{here}/{tag}", Accept=f"a/{number}"))
        assert name not in ours.store
        if "vnd" not in kind:  # else only a GET can tell
            assert ours.head(f"{here}/{name}").status == 502


def test_a_blob_is_no_manifest(ours: Registry, origin: Origin) -> None:
    """It came as a blob, and is asked for as a manifest."""
    name = serve_manifest(origin, "mixed/app", "v1", ERRORS, OCI_MANIFEST)
    origin.serve(f"/v2/mixed/app/blobs/{name}", text=ERRORS)
    assert ours.get(f"/v2/fault.test/mixed/app/blobs/{name}").status == 200
    for reference in ("v1", name):
        answer = ours.get(f"/v2/fault.test/mixed/app/manifests/{reference}")
        assert "DENIED" in message(answer)
        assert answer.code == "MANIFEST_INVALID"


def test_a_page_does_not_end_what_is_known(ours: Registry, origin: Origin) -> None:
    """An upstream that wants a login for a while is like one that does not answer."""
    text = image(201, [10]).manifest.decode()
    serve_manifest(origin, "portal/app", "v1", text, OCI_MANIFEST)
    path = "/v2/fault.test/portal/app/manifests/v1"
    assert ours.get(path).status == 200
    then = time.time() - 3600
    for note in (Path(ours.store.folder) / "registry" / "tags").iterdir():
        os.utime(note, (then, then))
    origin.change("/v2/portal/app/manifests/v1", text=PAGE, media_type="text/html", headers={})
    answer = ours.get(path)
    assert (answer.status, answer.body) == (200, text.encode())
    assert answer.headers["warning"] == '110 - "Response is Stale"'


def test_blobs_that_are_called_pages(ours: Registry, origin: Origin) -> None:
    """Some registries call every blob text/html."""
    key = digest(202, 5000)
    told = {"Docker-Content-Digest": key}
    for name, headers in (("first", {}), ("second", told)):  # the second is asked by HEAD
        there = f"/v2/html/{name}/blobs/{key}"
        origin.serve(there, seed=202, size=5000, media_type="text/html", headers=headers)
        answer = ours.get(f"/v2/fault.test/html/{name}/blobs/{key}")
        assert (answer.status, answer.body) == (200, content(202, 5000))
        assert answer.headers["content-type"] == "application/octet-stream"


def test_tags_that_are_no_list(ours: Registry, origin: Origin) -> None:
    for number, text in enumerate([PAGE, ERRORS, '{"tags": [1]}', '{"tags": "v1"}', "[]", "{}"]):
        there = f"/v2/fake/list{number}/tags/list"
        origin.serve(there, text=text, media_type="application/json")
        answer = ours.get(f"/v2/fault.test/fake/list{number}/tags/list")
        assert "no list of tags" in message(answer)
    origin.serve("/v2/fake/odd/tags/list", text='{"tags": ["v1", "a b", "\\u001b[2J"]}')
    answer = ours.get("/v2/fault.test/fake/odd/tags/list")
    assert json.loads(answer.body) == {"name": "fault.test/fake/odd", "tags": ["v1"]}


def test_tokens_that_are_none(ours: Registry, origin: Origin) -> None:
    for number, text in enumerate([PAGE, ERRORS, "{}", '{"token": {"a": 1}}']):
        origin.serve(f"/fake-token{number}", text=text)
        told = {"WWW-Authenticate": f'Bearer realm="{origin.url(f"/fake-token{number}")}"'}
        origin.serve(f"/v2/fake/token{number}/tags/list", status=401, headers=told)
        answer = ours.get(f"/v2/fault.test/fake/token{number}/tags/list")
        assert "its realm gives no token" in message(answer)


# Referrers.


def serve_fallback(origin: Origin, name: str, subject: str, what: str) -> None:
    """An upstream without the referrers API, with `what` under the tag made of the digest."""
    serve_manifest(origin, name, subject.replace(":", "-"), what, OCI_INDEX)


def entry(data: bytes, **facts: str) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": digest_of(data), "size": len(data), **facts}


def listed(ours: Registry, name: str, subject: str) -> list[Any]:
    """The referrers that clients get."""
    answer = ours.get(f"/v2/fault.test/{name}/referrers/{subject}")
    assert answer.status == 200, answer.body
    found: list[Any] = json.loads(answer.body)["manifests"]
    return found


def test_the_children_of_an_index_are_no_referrers(ours: Registry, origin: Origin) -> None:
    """Tools that copy images give an index a tag that is made of its own digest."""
    images: dict[str, Image] = {"amd64": image(203, [10]), "arm64": image(204, [10])}
    parent = index(images)
    serve_fallback(origin, "copied/app", parent.digest, parent.manifest.decode())
    assert listed(ours, "copied/app", parent.digest) == []
    # Neither are those of another index, nor is an image an index of referrers.
    serve_fallback(origin, "copied/other", NONE, parent.manifest.decode())
    assert listed(ours, "copied/other", NONE) == []
    serve_fallback(origin, "copied/image", NONE, images["amd64"].manifest.decode())
    assert listed(ours, "copied/image", NONE) == []


def test_referrers_of_an_upstream_without_them(ours: Registry, origin: Origin) -> None:
    plain, other = image(205, [10]).manifest, image(206, [10]).manifest
    subject = {**entry(b""), "digest": NONE}
    referring = json.dumps({**json.loads(plain), "subject": subject})
    serve_manifest(origin, "old/app", "x", referring, OCI_MANIFEST)
    serve_manifest(origin, "old/app", "y", other.decode(), OCI_MANIFEST)
    known, proved = entry(plain, artifactType="a/b"), entry(referring.encode())
    entries = [known, proved, entry(other), entry(b"gone")]
    text = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    serve_fallback(origin, "old/app", NONE, text)
    assert listed(ours, "old/app", NONE) == [known, proved]


def test_a_page_instead_of_referrers(ours: Registry, origin: Origin) -> None:
    """The upstream has a page for every path that it does not know; the tag counts."""
    known = entry(image(210, [10]).manifest, artifactType="a/b")
    text = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [known]})
    origin.serve(f"/v2/paged/app/referrers/{NONE}", text=PAGE, media_type="text/html")
    serve_fallback(origin, "paged/app", NONE, text)
    assert listed(ours, "paged/app", NONE) == [known]


def test_referrers_that_are_no_index(ours: Registry, origin: Origin) -> None:
    for number, text in enumerate([PAGE, ERRORS, "{}", '{"manifests": [{"digest": "x"}]}']):
        origin.serve(f"/v2/fake/ref{number}/referrers/{NONE}", text=text, media_type=OCI_INDEX)
        answer = ours.get(f"/v2/fault.test/fake/ref{number}/referrers/{NONE}")
        assert "no index" in message(answer)
        serve_fallback(origin, f"fake/fall{number}", NONE, text)
        answer = ours.get(f"/v2/fault.test/fake/fall{number}/referrers/{NONE}")
        assert "no manifest" in message(answer)


# Tags whose manifest is gone.


def test_a_tag_whose_manifest_is_gone_is_resolved_again(ours: Registry, origin: Origin) -> None:
    old, new = (image(seed, [10]).manifest.decode() for seed in (207, 208))
    path = "/v2/fault.test/moved/app/manifests/v1"
    before = serve_manifest(origin, "moved/app", "v1", old, OCI_MANIFEST)
    assert ours.head(path).headers["docker-content-digest"] == before
    origin.serve(f"/v2/moved/app/manifests/{before}", status=404)
    after = serve_manifest(origin, "moved/app", "v1", new, OCI_MANIFEST)
    answer = ours.get(path)
    assert (answer.status, answer.body) == (200, new.encode())
    assert answer.headers["docker-content-digest"] == after
    origin.serve(f"/v2/moved/app/manifests/{after}", status=404)
    origin.serve("/v2/moved/app/manifests/v1", status=404)
    assert ours.get(path).body == new.encode(), "it is here, and the note is fresh"


def test_a_tag_that_names_what_there_is_not(ours: Registry, origin: Origin) -> None:
    """The upstream contradicts itself: one more question, not more."""
    text = image(209, [10]).manifest.decode()
    name = serve_manifest(origin, "broken/app", "v1", text, OCI_MANIFEST)
    origin.serve(f"/v2/broken/app/manifests/{name}", status=404)
    for asked in (1, 2):
        assert ours.get("/v2/fault.test/broken/app/manifests/v1").code == "MANIFEST_UNKNOWN"
        assert len(origin.requests("/v2/broken/app/manifests/v1")) == asked
