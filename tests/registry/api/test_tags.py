"""What a client accepts, as part of the key under which a tag is noted."""

from __future__ import annotations

from shmstream.registry.api.tags import acceptable
from shmstream.registry.upstream import manifests


def test_acceptable() -> None:
    assert acceptable("b/c;q=0.5, A/B,,b/c") == "a/b, b/c"
    assert acceptable("") == ", ".join(sorted(manifests.KNOWN, key=manifests.KNOWN.index))
    assert len(acceptable(",".join(f"a/{number}" for number in range(1000)))) < 400
