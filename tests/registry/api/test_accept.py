"""The media types that a client accepts: the upstream gets them as they are."""

from __future__ import annotations

from shmstream.registry.api.accept import Accept
from shmstream.registry.upstream import manifests


def test_the_text_stays_as_it_is() -> None:
    lines = ["z/y;q=0.5, A/B", "", "b/c;q=0.9;x=1,,b/c"]
    assert Accept.of(lines).text == "z/y;q=0.5, A/B, b/c;q=0.9;x=1,,b/c"
    odd = 'A/B; Q=0.5 ,c/d;a="e,f;";q=0.2'
    assert Accept.of([odd]).text == odd
    assert len(Accept.of([f"a/{number}" for number in range(10_000)]).text) < 5000
    for none in ([], ["", " , "]):
        assert Accept.of(none).text.startswith(manifests.IMAGE)
        assert Accept.of(none).weight("a/b") == 0.1


def test_what_a_client_takes() -> None:
    accept = Accept.of(["a/b;q=0.5, A/c, a/*;Q=0.25, d/e;q=0, f/g;q=nan, h/i;q=7, */*;q=0.1"])
    weights = {"A/B": 0.5, "a/c": 1, "a/z": 0.25, "d/e": 0, "f/g": 1, "h/i": 1, "x/y": 0.1}
    assert {each: accept.weight(each) for each in weights} == weights
    assert sorted(accept.named) == ["a/b", "a/c", "d/e", "f/g", "h/i"]
    assert Accept.of(["a/b"]).weight("c/d") == 0
    quoted = Accept.of(['a/b;x="c/d,e";q=0.5,,f/g;y=",h/i'])
    assert {each: quoted.weight(each) for each in ("a/b", "f/g", "h/i", "e")} == {
        "a/b": 0.5, "f/g": 1, "h/i": 1, "e": 0,
    }  # fmt: skip
