"""The upstream is away: every client gets what any other client has pulled before."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from tests.registry.test_registry_faults import serve_manifest
from tests.support import registries
from tests.support.docker_registry import DockerRegistry
from tests.support.image_clients import CLIENTS, DOCKER
from tests.support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    digest_of,
    image,
    index,
)
from tests.support.origin import Origin
from tests.support.registries import Podman, Registry, has_image, skopeo, succeeds

EVERYTHING = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
STALE = '110 - "Response is Stale"'


def test_each_kind_of_client_gets_what_another_has_pulled(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    """By their own headers, and by their own names for one upstream."""
    ours = run_registry({None: docker_registry.url, "named.test": docker_registry.url})
    firsts: dict[str, Image] = {}
    for number, client in enumerate((*CLIENTS, None)):
        name = "skopeo" if client is None else client.name
        what = firsts[name] = index({"amd64": image(500 + number, [1000])})
        docker_registry.push(f"away/{name}", "v1", what)
        if client is None:
            succeeds(skopeo("named.test/away/skopeo:v1", ours.host, tmp_path / "first"))
        else:
            client.pull(ours, None if client is DOCKER else "named.test", f"away/{name}", "v1")
    assert " WARNING " not in ours.serving.log, "that is normal use"
    docker_registry.stop()
    for name, what in firsts.items():
        (part,) = what.images
        expected = {what.digest, part.digest, *map(digest_of, part.blobs)}
        for client in CLIENTS:
            for namespace in (None, "named.test"):
                assert client.pull(ours, namespace, f"away/{name}", "v1") == expected
        folder = tmp_path / name
        succeeds(skopeo(f"named.test/away/{name}:v1", ours.host, folder))
        assert has_image(folder, part.layers)
    with tempfile.TemporaryDirectory() as short:  # podman allows no long path
        podman = Podman(short)
        for name, what in firsts.items():
            assert podman.pull(f"{ours.host}/away/{name}:v1") == digest_of(what.images[0].blobs[0])


def test_what_a_client_does_not_take_it_does_not_get(ours: Registry, origin: Origin) -> None:
    """Of several manifests of one tag each client gets its own; without one, an error."""
    texts = {
        OCI_INDEX: index({"amd64": image(510, [10])}).manifest.decode(),
        DOCKER_MANIFEST: image(511, [10], DOCKER_MANIFEST).manifest.decode(),
    }
    path = "/v2/fault.test/negotiating/app/manifests/v1"
    for kind, text in texts.items():
        serve_manifest(origin, "negotiating/app", "v1", text, kind)
        assert ours.get(path, Accept=kind).body == text.encode()
    origin.refuse()
    for accept, kind in {
        f"{DOCKER_MANIFEST}, a/b": DOCKER_MANIFEST,
        f"{OCI_INDEX};q=0.1, a/b": OCI_INDEX,
        f"{OCI_INDEX}, {DOCKER_MANIFEST}, a/b": OCI_INDEX,
        f"{OCI_INDEX};q=0.1, {DOCKER_MANIFEST};q=0.2": DOCKER_MANIFEST,
        "application/*": OCI_INDEX,
        f"*/*, {OCI_INDEX};q=0": DOCKER_MANIFEST,
    }.items():
        answer = ours.get(path, Accept=accept)
        assert (answer.status, answer.body) == (200, texts[kind].encode()), accept
        assert answer.headers["content-type"] == kind
        assert answer.headers["warning"] == STALE
    assert ours.get(path, Accept=f"{OCI_MANIFEST}, {DOCKER_LIST}").code == "UNAVAILABLE"


def test_the_newest_answer_to_anybody_counts(ours: Registry, origin: Origin) -> None:
    path = "/v2/fault.test/newest/app/manifests/v1"
    texts = [image(seed, [10]).manifest.decode() for seed in (520, 521)]
    many = index({"amd64": image(522, [10])}).manifest.decode()
    for text, accept in zip(texts, ("a/b, */*", EVERYTHING), strict=True):
        serve_manifest(origin, "newest/app", "v1", text, OCI_MANIFEST)
        assert ours.get(path, Accept=accept).body == text.encode()
    serve_manifest(origin, "newest/other", "v1", many, OCI_INDEX)
    other = "/v2/fault.test/newest/other/manifests/v1"
    assert ours.get(other, Accept=EVERYTHING).body == many.encode()
    serve_manifest(origin, "newest/other", "v1", texts[0], OCI_MANIFEST)
    assert ours.get(other, Accept=f"{EVERYTHING}, */*").body == texts[0].encode()
    origin.refuse()
    age_tags(ours)
    for accept in ("a/b, */*", EVERYTHING, OCI_MANIFEST):
        assert ours.get(path, Accept=accept).body == texts[1].encode()
    for accept in (EVERYTHING, f"c/d, {EVERYTHING}"):  # it is no index any more
        assert ours.get(other, Accept=accept).body == texts[0].encode()


def test_a_new_manifest_that_cannot_be_had(ours: Registry, origin: Origin) -> None:
    """The upstream tells of it, and is away before it gives it: there is the one before."""
    path = "/v2/fault.test/half/app/manifests/v1"
    old, new = (image(seed, [10]).manifest.decode() for seed in (530, 531))
    serve_manifest(origin, "half/app", "v1", old, OCI_MANIFEST)
    assert ours.get(path, Accept=EVERYTHING).body == old.encode()
    age_tags(ours)
    name = serve_manifest(origin, "half/app", "v1", new, OCI_MANIFEST)
    for fault in ({"text": "<html>", "media_type": "text/html"}, {"status": 501}):
        origin.change(f"/v2/half/app/manifests/{name}", **fault)
        for accept in (EVERYTHING, OCI_MANIFEST):
            answer = ours.get(path, Accept=accept)
            assert (answer.status, answer.body) == (200, old.encode())
            assert answer.headers["warning"] == STALE
    origin.serve(f"/v2/half/app/manifests/{name}", text=new, media_type=OCI_MANIFEST)
    assert ours.get(path, Accept=EVERYTHING).body == new.encode()


def test_a_refusal_is_an_answer(ours: Registry, origin: Origin) -> None:
    """What the upstream has refused to a client is not there for it when the upstream is away."""
    text = image(540, [10]).manifest.decode()
    serve_manifest(origin, "gone/app", "v1", text, OCI_MANIFEST)
    path = "/v2/fault.test/gone/app/manifests/v1"
    assert ours.get(path, Accept=EVERYTHING).status == 200
    age_tags(ours)
    origin.serve("/v2/gone/app/manifests/v1", status=404)
    assert ours.get(path, Accept=DOCKER_LIST).code == "MANIFEST_UNKNOWN"
    origin.refuse()
    assert ours.get(path, Accept=f"a/b, {EVERYTHING}").status == 200, "it was not refused this"
    origin.accept()
    assert ours.get(path, Accept=EVERYTHING).code == "MANIFEST_UNKNOWN"
    origin.refuse()
    for accept in (EVERYTHING, f"c/d, {EVERYTHING}"):
        assert ours.get(path, Accept=accept).code == "UNAVAILABLE"


def test_a_page_takes_no_blob_away(ours: Registry, origin: Origin) -> None:
    """An old grant is renewed while the upstream shows a page to everybody."""
    data = json.dumps({"a": "blob"})
    digest = digest_of(data.encode())
    origin.serve(f"/v2/maintained/app/blobs/{digest}", text=data)
    path = f"/v2/fault.test/maintained/app/blobs/{digest}"
    assert ours.get(path).status == 200
    age(ours, "grants", 13 * 3600)
    origin.serve(f"/v2/maintained/app/blobs/{digest}", text="<html>", media_type="text/html")
    for _ in range(2):
        assert (ours.get(path).status, ours.get(path).body) == (200, data.encode())
    for text, kind in (("{}", "application/json"), ("<html>", "application/json"), ("", "a/b")):
        age(ours, "grants", 13 * 3600)
        origin.serve(f"/v2/maintained/app/blobs/{digest}", text=text, media_type=kind)
        assert (ours.get(path).status, ours.get(path).body) == (200, data.encode())
    origin.serve(f"/v2/maintained/app/blobs/{digest}", status=404)
    assert ours.get(path).code == "BLOB_UNKNOWN"


def age_tags(registry: Registry) -> None:
    age(registry, "tags", 3600)


def age(registry: Registry, shelf: str, seconds: float) -> None:
    """Make all notes older, in their order."""
    for path in (Path(registry.store.folder) / "registry" / shelf).iterdir():
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))
