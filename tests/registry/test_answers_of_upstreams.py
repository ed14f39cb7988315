"""Upstreams whose answers look like success and are none: nothing of it is served or kept."""

from __future__ import annotations

import gzip
import json
import os
import time
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.registry.test_registry_faults import serve_manifest
from tests.support.docker_registry import DockerRegistry
from tests.support.images import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    digest_of,
    image,
    index,
)
from tests.support.origin import Origin
from tests.support.quirks import Asked, Quirks
from tests.support.quirks import Reply as QuirkyReply
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


def test_what_upstreams_without_referrers_answer(ours: Registry, origin: Origin) -> None:
    """The tag counts, and without a tag there are none; but a refusal of both stays a refusal."""
    known = entry(image(213, [10]).manifest, artifactType="a/b")
    text = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [known]})
    origin.serve("/elsewhere", text=PAGE, media_type="text/html")
    cases: list[dict[str, Any]] = [
        {"status": 303, "headers": {"Location": "/elsewhere"}},
        *({"status": status} for status in (204, 400, 401, 403, 404, 405, 406, 410, 422, 501)),
        {"text": PAGE, "media_type": "text/html; charset=utf-8"},
        {"status": 404, "says": PAGE, "media_type": "text/html"},
    ]
    for number, answer in enumerate(cases):
        origin.serve(f"/v2/lacking/app{number}/referrers/{NONE}", **answer)
        path = f"/v2/fault.test/lacking/app{number}/referrers/{NONE}"
        if (status := answer.get("status")) in (401, 403):
            assert ours.get(path).status == status
        else:
            assert listed(ours, f"lacking/app{number}", NONE) == []
        serve_fallback(origin, f"lacking/app{number}", NONE, text)
        assert listed(ours, f"lacking/app{number}", NONE) == [known]
    for status, expected in ((429, 429), (500, 502)):
        there = f"/v2/lacking/busy{status}/referrers/{NONE}"
        origin.serve(there, status=status)
        serve_fallback(origin, f"lacking/busy{status}", NONE, text)
        assert ours.get(f"/v2/fault.test{there.removeprefix('/v2')}").status == expected


def test_referrers_that_are_no_index(ours: Registry, origin: Origin) -> None:
    for number, text in enumerate([PAGE, ERRORS, "{}", '{"manifests": [{"digest": "x"}]}']):
        origin.serve(f"/v2/fake/ref{number}/referrers/{NONE}", text=text, media_type=OCI_INDEX)
        answer = ours.get(f"/v2/fault.test/fake/ref{number}/referrers/{NONE}")
        assert "no index" in message(answer)
        serve_fallback(origin, f"fake/fall{number}", NONE, text)
        answer = ours.get(f"/v2/fault.test/fake/fall{number}/referrers/{NONE}")
        assert "no manifest" in message(answer)


def test_the_tag_of_a_long_digest(ours: Registry, origin: Origin) -> None:
    """It has the first 64 characters, as the specification says: no tag is longer than 128."""
    known = entry(image(217, [10]).manifest, artifactType="a/b")
    text = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [known]})
    serve_manifest(origin, "long/digest", f"sha512-{'ab' * 32}", text, OCI_INDEX)
    assert listed(ours, "long/digest", f"sha512:{'ab' * 64}") == [known]


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
    """It has the manifest by its tag only: a client gets it, as it would without us."""
    text = image(209, [10]).manifest.decode()
    name = serve_manifest(origin, "broken/app", "v1", text, OCI_MANIFEST)
    origin.serve(f"/v2/broken/app/manifests/{name}", status=404)
    for asked in (2, 4):
        answer = ours.get("/v2/fault.test/broken/app/manifests/v1")
        assert (answer.status, answer.body) == (200, text.encode())
        assert answer.headers["content-type"] == OCI_MANIFEST
        assert answer.headers["docker-content-digest"] == name
        assert len(origin.requests("/v2/broken/app/manifests/v1")) == asked
    assert name not in ours.store
    origin.serve("/v2/broken/app/manifests/v1", status=404)
    assert ours.get("/v2/fault.test/broken/app/manifests/v1").code == "MANIFEST_UNKNOWN"


# Manifests that cannot be kept.

SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def test_a_manifest_of_the_first_kind_is_passed_on(ours: Registry, origin: Origin) -> None:
    """Its digest is not that of its bytes, by which they could be kept."""
    facts = {"schemaVersion": 1, "fsLayers": [{"blobSum": NONE}], "signatures": []}
    text, name = json.dumps(facts), f"sha256:{'1' * 64}"
    told = {"Docker-Content-Digest": name}
    for reference in ("v1", name):
        there = f"/v2/signed/app/manifests/{reference}"
        origin.serve(there, text=text, media_type=SIGNED, headers=told)
    for reference, accept in (("v1", "*/*"), (name, "*/*"), ("v1", f"{SIGNED}, {OCI_MANIFEST}")):
        for method in ("HEAD", "GET", "GET"):
            path = f"/v2/fault.test/signed/app/manifests/{reference}"
            answer = ours.get(path, method, Accept=accept)
            assert (answer.status, answer.body) == (200, text.encode() if method == "GET" else b"")
            assert answer.headers["content-type"] == SIGNED
            assert answer.headers["docker-content-digest"] == name
            assert answer.headers["content-length"] == str(len(text))
        assert origin.requests()[-1].headers["accept"] == accept
    assert name not in ours.store
    lines = [line for line in ours.serving.log.splitlines() if name in line]
    assert not any(" WARNING " in line for line in lines), "that is normal use"


def test_what_the_upstream_makes_for_a_client(
    docker_registry: DockerRegistry, ours: Registry
) -> None:
    """docker-registry wants to make another manifest for clients that name none; here it cannot."""
    what = docker_registry.push("made/app", "v1", image(211, [10], DOCKER_MANIFEST))
    straight = HTTPConnection("127.0.0.1", docker_registry.port)
    straight.request("GET", "/v2/made/app/manifests/v1", headers={"Accept": "*/*"})
    expected = straight.getresponse()
    straight.close()
    assert ours.get("/v2/made/app/manifests/v1", Accept="*/*").status == expected.status == 400
    answer = ours.get("/v2/made/app/manifests/v1", Accept=DOCKER_MANIFEST)
    assert answer.headers["docker-content-digest"] == what.digest


def test_a_refusal_that_comes_after_an_answer(ours: Registry, origin: Origin) -> None:
    """What one client has got is no answer to a client that is refused; nor is it lost."""
    text = image(214, [10]).manifest.decode()
    for status in (400, 404, 406, 415):
        name = f"choosy/app{status}"
        serve_manifest(origin, name, "v1", text, OCI_MANIFEST)
        here = f"/v2/fault.test/{name}/manifests/v1"
        assert ours.get(here, Accept=f"{OCI_MANIFEST}, {OCI_INDEX}").status == 200
        origin.serve(f"/v2/{name}/manifests/v1", status=status)
        assert ours.get(here, Accept="*/*").status == status
        origin.serve(f"/v2/{name}/manifests/v1", status=501)
        assert ours.get(here, Accept=f"{OCI_MANIFEST}, a/b").body == text.encode()


def test_a_type_that_has_to_be_named(through: Registry, quirks: Quirks) -> None:
    """Many registries give a manifest only to clients that name its type, also by its digest."""
    kind = "application/vnd.example.odd.v1+json"
    for number, name in enumerate(("HEAD", "GET")):
        data = json.dumps({"schemaVersion": 2, "mediaType": kind, "number": number}).encode()
        digest = digest_of(data)
        found = QuirkyReply(200, {"Content-Type": kind, "Docker-Content-Digest": digest}, data)

        def script(asked: Asked, found: QuirkyReply = found) -> QuirkyReply:
            return found if kind in asked.headers["accept"] else QuirkyReply(404)

        quirks.script = script
        for each, reference in ((f"named/{name}".lower(), "v1"), ("named/both", digest)):
            answer = through.get(f"/v2/{each}/manifests/{reference}", name, Accept=kind)
            assert answer.status == 200, reference
            assert answer.headers["docker-content-digest"] == digest
            assert answer.headers["content-type"] == kind
        assert through.get(f"/v2/named/both/manifests/{digest}", Accept=kind).body == data
        assert digest in through.store


def test_a_manifest_that_is_refused_by_its_digest(through: Registry, quirks: Quirks) -> None:
    """Or is another one by that. Clients that ask for the tag get what its upstream gives."""
    what, other = image(215, [10]), image(216, [10])
    found = QuirkyReply(
        200, {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": NONE}, what.manifest
    )
    for number, refusal in enumerate(
        (*map(QuirkyReply, (400, 403, 406)), found, replace(found, body=other.manifest))
    ):

        def script(asked: Asked, refusal: QuirkyReply = refusal) -> QuirkyReply:
            return found if asked.path.endswith("/v1") else refusal

        quirks.script = script
        for method in ("GET", "HEAD", "GET"):
            answer = through.get(f"/v2/tagged/app{number}/manifests/v1", method)
            assert (answer.status, answer.headers["docker-content-digest"]) == (200, NONE)
            assert answer.body in (b"", what.manifest)
    assert NONE not in through.store


def test_what_the_upstream_says_of_its_refusal(ours: Registry, origin: Origin) -> None:
    """Clients are told, on one line, without what moves the cursor of a terminal."""
    words = {"code": "DENIED", "message": "pay \x1b[2J first", "detail": {}}
    cases = [
        (403, json.dumps({"errors": [words]}), "application/json", "DENIED: pay \\x1b[2J first"),
        (404, json.dumps({"errors": [words]}), "application/json", "DENIED: pay"),
        (404, "no such\nproject", "text/plain", "no such project"),
        (404, '{"errors": [{"message": "raw \x1b text"}]}', "application/json", "raw \\x1b text"),
        (503, '{"message": "in maintenance"}', "application/problem+json", "in maintenance"),
        (429, '{"details": "slow down"}', "application/json; charset=utf-8", "slow down"),
        (404, "<html>no</html>", "text/html", None),
        (404, "<html>no</html>", "text/plain", None),
    ]
    for number, (status, text, kind, expected) in enumerate(cases):
        parts = [f"blobs/sha256:{number:064d}", f"tags/list?n={number}"]
        if status in (403, 404):  # the others end with the answer to a HEAD, which has no words
            parts.append(f"manifests/v{number}")
        for part in parts:
            origin.serve(f"/v2/words/app/{part}", says=text, media_type=kind, status=status)
            answer = ours.get(f"/v2/fault.test/words/app/{part}")
            assert answer.status == (502 if status == 503 else status)
            (told,) = json.loads(answer.body)["errors"]
            assert told["message"].isprintable()
            if expected is None:
                assert "html" not in told["message"]
            else:
                assert expected in told["message"]


def test_a_refusal_whose_words_are_encoded(through: Registry, quirks: Quirks) -> None:
    words = json.dumps({"errors": [{"code": "BLOB_UNKNOWN", "message": "it was here"}]}).encode()
    cases = [("gzip", gzip.compress(words)), ("gzip", words), ("br", b"\x0b\x02\x80")]
    for number, (coding, data) in enumerate(cases):
        told = {"Content-Type": "application/json", "Content-Encoding": coding}
        reply = QuirkyReply(404, told, data)

        def script(_: Asked, reply: QuirkyReply = reply) -> QuirkyReply:
            return reply

        quirks.script = script
        answer = through.get(f"/v2/squeezed/app/blobs/sha256:{number:064d}")
        (error,) = json.loads(answer.body)["errors"]
        expected = "" if coding == "br" else ": BLOB_UNKNOWN: it was here"
        assert error["message"] == f"not known to the upstream{expected}"


def test_the_header_accept_goes_on_as_it_is(ours: Registry, origin: Origin) -> None:
    text = image(212, [10]).manifest.decode()
    serve_manifest(origin, "accept/app", "v1", text, OCI_MANIFEST)
    accept = f"z/z;q=0.5;v=1, {OCI_MANIFEST} , A/b;q=0.9"
    answer = ours.raw(
        b"GET /v2/fault.test/accept/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        + b"".join(b"Accept: %b\r\n" % each.encode() for each in accept.split(" , "))
        + b"\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    (asked,) = origin.requests("/v2/accept/app/manifests/v1")
    assert asked.headers["accept"] == accept.replace(" , ", ", ")
