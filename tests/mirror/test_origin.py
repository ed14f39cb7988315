"""Which fields go from a client to an origin, and back; and what is written of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import urllib3

from shmstream.mirror.entry import Entry, Shelf, selecting
from shmstream.mirror.origin import head_of, is_personal, passed_on


@pytest.mark.parametrize("name", [
    "x-http-method-override", "x-original-url", "x-rewrite-url", "x-host", "x-forwarded-host",
    "x-method-override", "forwarded",
])  # fmt: skip
def test_no_field_has_the_origin_answer_another_question(name: str) -> None:
    assert name not in passed_on({name: "evil"})


def test_fields_that_tell_who_asks() -> None:
    for name in ("authorization", "cookie", "private-token", "job-token", "x-jfrog-art-api",
                 "x-api-key", "x_api_key", "x-amz-security-token", "apikey"):  # fmt: skip
        assert is_personal(name), name
    for name in ("accept", "user-agent", "via", "x-request-id", "accept-language"):
        assert not is_personal(name), name


def test_an_origin_does_not_command_the_server_in_front() -> None:
    told = {"X-Accel-Redirect": "/secret", "X-Accel-Buffering": "no", "X-Sendfile": "/secret",
            "X-Accel-Expires": "1", "ETag": '"1"'}  # fmt: skip
    fields = head_of(urllib3.HTTPResponse(b"", headers=told, preload_content=False))
    assert fields == [("etag", '"1"')]
    entry = Entry(200, [], {}, 0.0, 0.0).confirmed(fields, 0.0, 0.0)
    assert entry.fields == [("etag", '"1"')]


def test_no_secret_that_vary_names_is_written(folder: str) -> None:
    Path(folder).mkdir(exist_ok=True)
    shelf, request = Shelf(folder, "x"), {"authorization": "Bearer s3cret", "accept": "a/b, c"}
    fields = [("vary", "Authorization, Cookie, Accept"), ("cache-control", "public, max-age=60")]
    vary, now = selecting(fields, request), time.time()
    assert "s3cret" not in str(vary)
    shelf.write("http://a/", Entry(200, fields, vary, now, now))
    assert shelf.find("http://a/", request) is not None
    assert shelf.find("http://a/", {**request, "accept": "a/b,c"}) is not None
    for other in ({}, {**request, "authorization": "Bearer other"}, {**request, "cookie": "a=b"}):
        assert shelf.find("http://a/", other) is None
