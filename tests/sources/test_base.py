"""What all sources share."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream.sources.base import Description, public


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host:1/a/b?x=1&y=2&z#f", "https://host:1/a/b?x=***&y=***&***"),
        ("http://host", "http://host"),
        ("http://host?secret", "http://host?***"),
        ("s3://key:secret@bucket/a@b", "s3://bucket/a@b"),
        ("zip://x@y::ftp://me:pass@host/a", "zip://y::ftp://host/a"),
        ("http://me:pass@[/a?b", "http://***"),
    ],
)
def test_names_have_no_credentials(url: str, shown: str) -> None:
    assert public(url) == shown


SECRET = "s3cret"
words = some.text(alphabet="abcxyz01.-_", min_size=1, max_size=6)
users = some.text(alphabet="!$&'()*+,;=:%ab", max_size=4).map(lambda text: SECRET + text)
secrets = some.text(alphabet="!$&'()*+,;=:@/?#%ab", max_size=4).map(lambda text: SECRET + text)
"""A password may have any of these marks, although "/", "?" and "#" should be escaped. In a user
without a password those three make another valid URL, which hides nothing.
"""


@some.composite
def urls(draw: some.DrawFn) -> str:
    """A URL with SECRET in its user, its password and the values of its query."""
    scheme = draw(some.sampled_from(["http", "https", "s3", "ftp", "memory"]))
    user, secret = draw(users), draw(secrets)
    login = draw(some.sampled_from(["", f"{user}@", f"me:{secret}@", f"{user}:{secret}@"]))
    host = draw(some.sampled_from(["host", "host.example:80", "[::1]", "[fe80::1]:443"]))
    path = "/".join(["", *draw(some.lists(words, max_size=3))])
    values = some.text(alphabet="ab:/?@%+", max_size=4).map(lambda text: SECRET + text)
    fields = draw(some.lists(some.tuples(words, values), max_size=2))
    query = "?" + "&".join(f"{name}={value}" for name, value in fields) if fields else ""
    fragment = draw(some.sampled_from(["", f"#{SECRET}"]))
    return f"{scheme}://{login}{host}{path}{query}{fragment}"


@settings(deadline=None, max_examples=500)
@given(urls(), some.sampled_from(["", "zip://a::", "simplecache::", "zip://x@y::simplecache::"]))
@example("http://[::1]/?token=s3cret", "")
@example("http://me:a::s3cret@host/", "")
@example("http://host/?a=b::s3cret", "zip://a::")
@example("ftp://me:s3cret::b@host/", "")
@example("http://me:s3cret/b@host/", "")
@example("http://me:s3cret?b@host/", "")
@example("http://me:s3cret#b@host/", "")
@example("me:s3cret@host/", "")
@example("ftp://me:s3cret::a://b@host/", "")
@example("s3://me@[::1]/?a=s3cret", "")
@example("zip://x:y.txt::s3://me:s3cret@b/c", "")
def test_no_url_shows_its_credentials(url: str, chain: str) -> None:
    shown = public(chain + url)
    assert SECRET not in shown
    assert public(shown) == shown
    assert shown.startswith(chain.replace("x@", ""))


@settings(deadline=None, max_examples=200)
@given(some.text(max_size=20))
@example("http://\uff20/")
@example("://@")
def test_whatever_is_to_be_shown(text: str) -> None:
    assert public(public(text)) == public(text)


def test_what_has_nothing_to_hide_is_shown_as_it_is() -> None:
    for url in ("http://[::1]:80/a", "zip://a::s3://bucket/key", "s3://bucket/a@b", "a/b"):
        assert public(url) == url
    arn = "s3://arn:aws:s3:eu-west-1:1:accesspoint/name/key"
    assert public(f"{arn}?versionId=5") == f"{arn}?versionId=***"


# Descriptions.

facts = some.none() | some.text(max_size=100)
descriptions = some.builds(Description, some.none() | some.integers(0, 2**63), facts, facts)


@settings(deadline=None, max_examples=200)
@given(descriptions, some.integers(100, 2000))
def test_a_description_as_text(description: Description, limit: int) -> None:
    """Facts that are too long are left out, the media type first; the others are kept."""
    text = description.to_text(limit)
    assert len(text) <= limit
    copy = Description.from_text(text)
    size, validator, _ = vars(description).values()
    kept = [description, Description(size, validator), Description(size)]
    assert copy in kept
    assert copy == description or len(description.to_text(1 << 20)) > limit
    assert Description.from_text(text.decode()) == copy


documents = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.sampled_from(["size", "validator", "media_type", "x"]), inner)
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(some.binary(max_size=50) | documents.map(lambda document: json.dumps(document).encode()))
@example(b"[" * 100_000)
@example(b'{"size": NaN}')
@example(b'{"size": true}')
@example(b'{"size": -1}')
@example(b'{"size": ' + b"9" * 5000 + b"}")
def test_whatever_a_description_is_read_from(text: bytes) -> None:
    found = Description.from_text(text)
    assert found.size is None or (type(found.size) is int and found.size >= 0)
    assert found.validator is None or isinstance(found.validator, str)
    assert found.media_type is None or isinstance(found.media_type, str)
