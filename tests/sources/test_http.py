"""An HTTP source: a feed gives the blob's bytes, whatever the origin answers, or says why not."""

from __future__ import annotations

import os

import hypothesis
import pytest
from hypothesis import strategies as some

from shmstream.errors import SourceError, SourceFailed
from shmstream.sources.http import HTTPSource, _content_range, _is_for_if_range, _validator
from tests.support.feeds import (
    BLOB,
    OTHER,
    SIZE,
    everything,
    fails_to_open,
    fails_to_read,
    given,
    read,
)
from tests.support.nginx import Nginx
from tests.support.origin import Origin
from tests.support.roles import content

OLD = "Mon, 02 Jan 2023 03:04:05 GMT"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_the_whole_blob(origin: Origin, framing: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, framing=framing, media_type="image/png")
    feed = HTTPSource(url).open()
    assert feed.offset == 0
    assert feed.size == (SIZE if framing == "length" else None)
    assert feed.validator == '"1-300000"'
    assert feed.media_type == "image/png"
    assert everything(feed) == BLOB
    (request,) = origin.requests()
    assert request.headers["accept-encoding"] == "identity"
    assert request.range is None


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_resuming(origin: Origin, framing: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, framing=framing))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size, feed.validator) == (1000, SIZE, '"1-300000"')
    assert everything(feed) == BLOB[1000:]
    (request,) = origin.wait("/blob", lambda requests: requests[0].over)
    assert (request.status, request.sent) == (206, SIZE - 1000)
    assert request.range == "bytes=1000-"
    assert request.headers["if-range"] == '"1-300000"'


def test_resuming_without_a_validator_asks_for_the_range_alone(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, etag=None))
    with source.open() as feed:
        assert feed.validator is None
    assert read(source, 5) == BLOB[5:]
    assert "if-range" not in origin.requests()[-1].headers


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_the_validator_is_a_date_where_there_is_no_strong_tag(
    origin: Origin, etag: str | None
) -> None:
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=SIZE, etag=etag, last_modified=OLD, media_type=None)
    )
    with source.open() as feed:
        assert feed.validator == OLD
        assert feed.media_type is None
    assert read(source, 7, OLD) == BLOB[7:]
    assert origin.requests()[-1].headers["if-range"] == OLD


def test_a_date_of_this_very_second_is_no_validator(origin: Origin) -> None:
    later = "Fri, 01 Jan 2100 00:00:00 GMT"
    source = HTTPSource(origin.serve("/blob", size=10, etag=None, last_modified=later))
    with source.open() as feed:
        assert feed.validator is None


def test_other_content_by_now_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", first=1, seed=2)
    with source.open() as first:
        before = first.validator
    feed = source.open(1000, before)
    assert feed.offset == 0
    assert feed.validator != before
    assert everything(feed) == OTHER
    assert [request.status for request in origin.requests()] == [200, 200]


@pytest.mark.parametrize("tagged", [True, False])
def test_other_content_by_now_from_an_origin_that_ignores_if_range(
    origin: Origin, tagged: bool
) -> None:
    facts = {} if tagged else {"etag": None, "last_modified": OLD}
    source = HTTPSource(origin.serve("/blob", seed=2, size=SIZE, if_range=False, **facts))
    other = '"1-300000"' if tagged else "Sun, 01 Jan 2023 03:04:05 GMT"
    feed = source.open(1000, other)
    assert feed.offset == 0
    assert everything(feed) == OTHER
    assert [request.status for request in origin.requests()] == [206, 200]


@pytest.mark.parametrize("validator", ["1700000000-300000-12", "a\r\nX: b", '"\r\n', ""])
def test_a_validator_of_another_source_begins_at_0(origin: Origin, validator: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    assert read(source, 1000, validator) == BLOB
    assert origin.requests()[0].range is None


def test_a_part_without_a_validator_begins_at_0(origin: Origin) -> None:
    """The server supports ranges but not If-Range, and sends no validator with a part."""
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, last_modified=OLD))
    origin.change("/blob", etag=None, if_range=False)
    with source.open(1000, '"1-300000"') as feed:
        assert feed.offset == 0


def test_an_origin_without_ranges_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, ranges=False))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size) == (0, SIZE)
    assert everything(feed) == BLOB


def test_nothing_left_is_an_empty_feed(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    feed = source.open(SIZE, '"1-300000"')
    assert (feed.offset, feed.size, feed.validator) == (SIZE, SIZE, '"1-300000"')
    assert everything(feed) == b""
    assert origin.requests()[0].status == 416


def test_an_offset_behind_the_end_begins_at_0(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    feed = source.open(SIZE + 1)
    assert feed.offset == 0
    assert everything(feed) == BLOB


@pytest.mark.parametrize("told", ["bytes 0-299999/300000", "bytes 999-299999/300000", "1000", ""])
def test_a_range_that_was_not_asked_for(origin: Origin, told: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, content_range=told))
    feed = source.open(1000)
    assert feed.offset == 0
    assert everything(feed) == BLOB


@pytest.mark.parametrize("status", [400, 403, 404, 405, 412, 416, 501, 505])
def test_a_server_that_refuses_ranges_gives_the_whole(origin: Origin, status: int) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, range_status=status))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size, feed.validator) == (0, SIZE, '"1-300000"')
    assert everything(feed) == BLOB


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_may_give_a_part_later_is_not_asked_for_the_whole(
    origin: Origin, status: int
) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, range_status=status))
    assert fails_to_open(source, 1000).retryable
    assert len(origin.requests()) == 1


def test_a_part_that_does_not_tell_the_size(origin: Origin) -> None:
    """That is legal, and a HEAD tells the size. Without a size there may be more after the part."""
    told = "bytes 1000-299999/*"
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, content_range=told))
    feed = source.open(1000, '"1-300000"')
    assert (feed.offset, feed.size) == (1000, SIZE)
    assert everything(feed) == BLOB[1000:]
    origin.change("/blob", framing="chunked")  # then a HEAD does not tell the size either
    feed = source.open(1000, '"1-300000"')
    assert feed.offset == 0
    assert everything(feed) == BLOB


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_part_of_the_range_is_not_the_end_of_the_blob(origin: Origin, framing: str) -> None:
    told = "bytes 1000-1999/300000"
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=2000, framing=framing, content_range=told)
    )
    got, error = fails_to_read(source.open(1000))
    assert got == content(1, 2000)[1000:]
    assert error.retryable


def test_more_than_the_range(origin: Origin) -> None:
    told = "bytes 1000-1999/2000"
    source = HTTPSource(
        origin.serve("/blob", seed=1, size=SIZE, framing="chunked", content_range=told)
    )
    with source.open(1000) as feed, pytest.raises(SourceError, match="more than its 2000"):
        for _ in given(feed):
            pass


def test_a_length_that_is_too_long(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, content_length="300001", close_after=SIZE)
    got, error = fails_to_read(HTTPSource(url).open())
    assert got == BLOB
    assert error.retryable


@pytest.mark.parametrize(
    "length", ["300000, 300000", "300000,300000 ,", "300000\r\nContent-Length: 300000"]
)
def test_a_length_that_is_told_twice(origin: Origin, length: str) -> None:
    """The connection is kept: a client that waits for its end would wait for long."""
    url = origin.serve("/blob", seed=1, size=SIZE, content_length=length)
    for _ in range(2):
        assert read(HTTPSource(url)) == BLOB
    assert len({each.connection for each in origin.requests()}) == 1


def test_lengths_that_contradict_each_other(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, content_length="300000, 300001")
    assert "several lengths" in fails_to_open(HTTPSource(url)).reason


@pytest.mark.parametrize("length", ["many", "-1", "1e3", str(2**64), "9" * 5000])
def test_a_length_that_is_none(origin: Origin, length: str) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, content_length=length)
    assert not fails_to_open(HTTPSource(url)).retryable


@pytest.mark.parametrize(
    "headers", [{"Content-Encoding": "gzip"}, {"Transfer-Encoding": "gzip, chunked"}]
)
def test_an_encoded_body_is_refused(origin: Origin, headers: dict[str, str]) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/blob", size=10, headers=headers)))
    assert not error.retryable
    assert "gzip" in error.reason


def test_the_words_of_a_server_are_escaped(origin: Origin) -> None:
    """A terminal or a log would obey them."""
    hostile = "\x1b]0;owned\x07\x9b31m"
    source = HTTPSource(origin.serve("/blob", status=404, reason=hostile))
    for error in (fails_to_open(source), SourceFailed("a stream", 0, f"it said {hostile}")):
        assert "\\x1b]0;owned\\x07\\x9b31m" in str(error)
        assert str(error).isprintable()
    facts = {"etag": hostile, "media_type": f"text/{hostile}"}
    with HTTPSource(origin.serve("/blob", seed=1, size=SIZE, **facts)).open() as feed:
        assert (feed.validator, feed.media_type) == (None, None)


def test_nginx(nginx: Nginx) -> None:
    (nginx.folder / "blob").write_bytes(BLOB)
    os.utime(nginx.folder / "blob", (1e9, 1e9))
    source = HTTPSource(nginx.url("blob"))
    first = source.open()
    assert (first.size, first.media_type) == (SIZE, "application/octet-stream")
    assert everything(first) == BLOB
    assert read(source, 123, first.validator) == BLOB[123:]
    assert read(source, SIZE, first.validator) == b""
    (nginx.folder / "blob").write_bytes(OTHER)
    assert read(source, 123, first.validator) == OTHER
    assert not fails_to_open(HTTPSource(nginx.url("nothing"))).retryable
    served = nginx.wait(5)
    assert [each.status for each in served] == [200, 206, 416, 200, 404]
    assert served[1].range == "bytes=123-"
    assert served[1].if_range == first.validator
    assert served[1].bytes == SIZE - 123
    assert len({each.connection for each in served}) == 1


# Headers: no origin can make the source fail in another way than by a SourceError.

numbers = some.integers(0, 2**58)
huge = "9" * 5000


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(numbers, numbers, numbers, some.sampled_from(["bytes", "BYTES", "Bytes"]))
def test_a_content_range(start: int, length: int, size: int, unit: str) -> None:
    told = {"content-range": f" {unit} {start}-{start + length}/{size} "}
    assert _content_range(told) == (start, start + length + 1, size)
    assert _content_range({"content-range": f"{unit} */{size}"}) == (None, None, size)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(some.text(alphabet="bytes 0123456789-*/\u0663", max_size=20))
@hypothesis.example(f"bytes 0-{huge}/{huge}")
@hypothesis.example(f"bytes {huge}-5/6")
@hypothesis.example("bytes \u0663-5/6")
def test_whatever_a_content_range_is(told: str) -> None:
    start, end, size = _content_range({"content-range": told})
    assert start is None or f"{start}" in told
    assert end is None or f"{end - 1}" in told
    assert size is None or f"{size}" in told


dates = some.sampled_from([
    OLD, "Fri, 01 Jan 2100 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT", "01 Jan 0000 00:00:00",
    "Mon, 99 Nov 2023 99:99:99 +9999", f"Mon, 02 Jan {huge} 03:04:05 GMT", "",
])  # fmt: skip
anything = dates | some.text(max_size=30) | some.text(alphabet="MonJa 0129:,+-GMT", max_size=40)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(anything, anything, anything)
def test_whatever_tells_of_the_content(etag: str, changed: str, now: str) -> None:
    found = _validator({"etag": etag, "last-modified": changed, "date": now})
    assert found in (None, etag, changed)
    _is_for_if_range(etag)
    _is_for_if_range(changed)


@pytest.mark.parametrize(
    "headers",
    [
        {"last_modified": "Mon, 01 Jan 99999 00:00:00 GMT"},
        {"content_length": "1" * 5000},
        {"content_range": f"bytes 5-{huge}/{huge}"},
    ],
    ids=["date", "length", "range"],
)
def test_headers_that_no_number_can_hold(origin: Origin, headers: dict[str, str]) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE, etag=None, **headers)
    source = HTTPSource(url)
    if "last_modified" in headers:  # the blob has no validator
        assert read(source, 5) == BLOB[5:]
    elif "content_range" in headers:
        assert read(source, 5) == BLOB
    else:
        assert not fails_to_open(source).retryable
