"""The media types that a client accepts: they are part of the key of a tag's note."""

from __future__ import annotations

from shmstream.registry.api.tags import acceptable
from shmstream.registry.upstream import manifests


def test_acceptable() -> None:
    assert acceptable("b/c;q=0.5, A/B,,b/c") == "a/b, b/c"
    assert acceptable("") == ", ".join(sorted(manifests.KNOWN, key=manifests.KNOWN.index))
    assert len(acceptable(",".join(f"a/{number}" for number in range(1000)))) < 400
