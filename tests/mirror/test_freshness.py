"""What RFC 9111 says of one answer."""

from __future__ import annotations

import time
from hashlib import sha256

import pytest

from shmstream.asgi.headers import http_date
from shmstream.mirror import freshness
from shmstream.mirror.entry import Entry, selecting
from shmstream.mirror.freshness import Pairs, Wish, control, lifetime, may_keep

NOW = 1_700_000_000


def told(**fields: str) -> Pairs:
    return [(name.replace("_", "-"), value) for name, value in fields.items()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max-age=1, Max-Age=2", {"max-age": "1"}),
        ('private="a, b", no-store', {"private": "a, b", "no-store": ""}),
        ("no-cache,,  public ", {"no-cache": "", "public": ""}),
        ('x="\\"", max-age="5"', {"x": '"', "max-age": "5"}),
        ("", {}),
    ],
)
def test_directives(text: str, expected: dict[str, str]) -> None:
    assert control([text]) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (told(cache_control="max-age=10"), 10),
        (told(cache_control="max-age=10, s-maxage=20"), 20),
        (told(cache_control="max-age=10, no-cache"), 0),
        (told(cache_control="max-age=-1"), 0),
        (told(cache_control="max-age=1.5"), 0),
        (told(cache_control=f"max-age={10**30}"), freshness.FOR_EVER),
        (told(expires=http_date(NOW + 60), date=http_date(NOW)), 60),
        (told(expires=http_date(NOW + 60), date=http_date(NOW + 50)), 10),
        (told(expires="0"), 0),
        (told(expires=http_date(NOW + 60), cache_control="max-age=5"), 5),
        (told(cache_control="immutable"), 365 * 24 * 3600),
        (told(last_modified=http_date(NOW - 10**6)), 7),  # nothing is guessed
    ],
)
def test_lifetimes(fields: Pairs, expected: float) -> None:
    assert lifetime(fields, NOW, 7) == expected


@pytest.mark.parametrize(
    ("status", "fields", "personal", "kept"),
    [
        (200, {}, False, True),
        (200, {"cache_control": "no-store"}, False, False),
        (200, {"cache_control": "no-store, must-understand"}, False, True),
        (299, {"cache_control": "max-age=1, must-understand"}, False, False),
        (200, {"cache_control": "private"}, False, False),
        (200, {"vary": "*"}, False, False),
        (200, {"set_cookie": "a=b", "cache_control": "max-age=9"}, False, False),
        (200, {"cache_control": "max-age=9"}, True, False),
        (200, {"cache_control": "s-maxage=9"}, True, True),
        (404, {}, False, False),
        (404, {"cache_control": "max-age=9"}, False, True),
        (206, {"cache_control": "max-age=9"}, False, False),
    ],
)
def test_what_may_be_kept(status: int, fields: dict[str, str], personal: bool, kept: bool) -> None:
    assert may_keep(status, told(**fields), is_personal=personal) is kept


def test_age_and_freshness_of_an_entry() -> None:
    now = time.time()
    entry = Entry(200, told(cache_control="max-age=100", age="30"), {}, now - 1, now)
    assert 30 < entry.age < 90  # a machine may be slow
    assert entry.serves(Wish({}), now + 1)
    assert not entry.serves(Wish({"max-age": "20"}), now + 1)
    assert not entry.serves(Wish({"min-fresh": "90"}), now + 1)
    assert not entry.serves(Wish({"no-cache": ""}), now + 1)
    assert entry.serves(Wish({"no-cache": ""}), now - 2)  # it came after the request
    old = Entry(
        200, told(cache_control="max-age=100, stale-while-revalidate=50"), {}, now, now - 120
    )
    assert not old.serves(Wish({}), now)
    assert old.serves(Wish({"max-stale": ""}), now)
    assert not old.serves(Wish({"max-stale": "5"}), now)
    assert old.may_wait
    assert old.may_be_stale


def test_what_vary_selects() -> None:
    request = {"accept": "a,b", "accept-encoding": "gzip"}
    found = selecting(told(vary="Accept, Accept-Encoding,X"), request)
    assert found == {"accept": sha256(b"a,b").hexdigest(), "x": ""}
