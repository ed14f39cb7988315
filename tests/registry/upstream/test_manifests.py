"""What the bytes of a manifest tell, whatever they are."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.registry.upstream import manifests
from tests.support import images

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LONG_DIGEST = f"sha512:{HEX}{HEX}"


def test_media_types() -> None:
    for image in (images.image(1, [10]), images.image(2, [10], images.DOCKER_MANIFEST)):
        assert manifests.declared(manifests.parsed(image.manifest)) == image.media_type
    silent = images.image(3, [10], mentions_media_type=False)
    assert manifests.declared(manifests.parsed(silent.manifest)) == manifests.IMAGE
    assert manifests.declared({"manifests": []}) == manifests.INDEX
    assert manifests.declared({"whatever": 1}) is None


def test_what_is_no_media_type_of_a_manifest() -> None:
    long, latin = "application/" + "x" * 200, "application/\u00e9"
    mixed = (
        "text/html",
        "application/json\r\nX: y",
        "application/x y",
        "",
        "application/",
        5,
        None,
    )
    for text in (*mixed, long, latin, "APPLICATION/json"):
        assert manifests.media_type(text) is None
        assert manifests.declared({"mediaType": text, "manifests": []}) == manifests.INDEX


def test_a_media_type_has_no_parameters() -> None:
    assert manifests.media_type("application/json; charset=utf-8") == "application/json"


def test_layers() -> None:
    image = images.image(4, [10, 20, 10])
    assert manifests.layers(manifests.parsed(image.manifest)) == image.layers
    odd = {"layers": [{"digest": "sha256:x"}, {"digest": DIGEST, "urls": ["http://a"]}, 5, {}]}
    assert manifests.layers(odd) == []
    assert manifests.layers({"layers": "no"}) == []
    assert manifests.layers({"manifests": [{"digest": DIGEST}]}) == []


@given(some.binary(max_size=200))
@example(b"[" * 100_000)
@example(b"null")
@example(b'{"manifests": {"a": 1}, "layers": [[]]}')
def test_whatever_a_manifest_is(data: bytes) -> None:
    found = manifests.parsed(data)
    manifests.declared(found)
    assert manifests.layers(found) == []
    assert json.loads(manifests.referrers(found, None))["schemaVersion"] == 2


def test_referrers_of_one_artifact_type() -> None:
    entries = [{"digest": DIGEST, "artifactType": "a/b"}, {"digest": DIGEST}, 7]
    assert (
        json.loads(manifests.referrers({"manifests": entries}, "a/b"))["manifests"] == entries[:1]
    )
    assert json.loads(manifests.referrers({"manifests": entries}, None))["manifests"] == entries[:2]
