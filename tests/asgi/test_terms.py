"""What a caller asks for: names of files, dates, a producer to wait for, a server in front."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from shmstream import Store
from shmstream.asgi import InFlightResponse
from shmstream.asgi.conditions import with_the_blob, without_the_blob
from shmstream.asgi.headers import content_disposition, seconds_of
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 200_000
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
WHEN = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


class Client:
    """One request, in a task."""

    def __init__(self, response: InFlightResponse, method: str = "GET", **headers: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        raw = [(each.replace("_", "-").encode(), it.encode()) for each, it in headers.items()]
        self._scope = {"type": "http", "method": method, "path": "/", "headers": raw}
        self._response = response
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(response(self._scope, self._receive, self._send))

    async def _receive(self) -> Any:
        return await asyncio.Future()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {each.decode(): it.decode() for each, it in message["headers"]}
        self.body += message.get("body", b"")
        self._news.set()

    async def has(self, count: int) -> None:
        while len(self.body) < count:
            self._news.clear()
            await self._news.wait()


def ask(response: InFlightResponse, method: str = "GET", **headers: str) -> Client:
    async def main() -> Client:
        client = Client(response, method, **headers)
        await client.task
        return client

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.bin", 'filename="model.bin"'),
        ("a b;c.bin", 'filename="a b;c.bin"'),
        ('a"b\\c.bin', "filename=\"a_b_c.bin\"; filename*=UTF-8''a%22b%5Cc.bin"),
        ("a/b.bin", "filename=\"a_b.bin\"; filename*=UTF-8''a%2Fb.bin"),
        ("Bücher.csv", "filename=\"B_cher.csv\"; filename*=UTF-8''B%C3%BCcher.csv"),
        ("数据", f"filename=\"__\"; filename*=UTF-8''{quote('数据')}"),
    ],
)
def test_a_name_for_the_file(name: str, told: str, store: Store) -> None:
    got = ask(InFlightResponse(store, KEY, [DATA], filename=name))
    assert got.headers["content-disposition"] == f"attachment; {told}"
    assert got.body == DATA


def test_headers_of_the_caller_come_first(store: Store) -> None:
    headers = {"Content-Disposition": "inline"}
    got = ask(InFlightResponse(store, KEY, [DATA], filename="a", headers=headers))
    assert got.headers["content-disposition"] == "inline"
    for wrong in ("", "a\nb", "a\x00"):
        with pytest.raises(ValueError, match="file name"):
            content_disposition(wrong)


@pytest.mark.parametrize(
    "when",
    [
        WHEN,
        WHEN + 0.9,
        DATE,
        datetime(2023, 11, 14, 22, 13, 20),  # of UTC
        datetime(2023, 11, 14, 22, 13, 20, 999_999, tzinfo=UTC),
        datetime(2023, 11, 15, 3, 13, 20, tzinfo=timezone(timedelta(hours=5))),
    ],
)
def test_when_it_was_modified(when: Any, store: Store) -> None:
    response = InFlightResponse(store, "report", [DATA], last_modified=when)
    assert ask(response).headers["last-modified"] == DATE
    assert ask(response, if_modified_since=DATE).status == 304


def test_what_is_no_time(store: Store) -> None:
    for wrong in ("yesterday", float("inf"), float("nan"), 1e30):
        with pytest.raises(ValueError, match=r"no date|no time"):
            seconds_of(wrong)
        with pytest.raises(ValueError, match=r"no date|no time"):
            InFlightResponse(store, KEY, last_modified=wrong)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": LATER}, 304),
        ({"if-modified-since": EARLIER}, 200),
        ({"if-modified-since": "no date"}, 200),
        ({"if-modified-since": "Tue, 99 Nov 99999999999999 99:99:99 GMT"}, 200),
        ({"if-modified-since": LATER, "if-none-match": '"another"'}, 200),
        ({"if-modified-since": EARLIER, "if-none-match": '"x"'}, 304),
        ({"if-unmodified-since": DATE}, 200),
        ({"if-unmodified-since": EARLIER}, 412),
        ({"if-unmodified-since": EARLIER, "if-match": '"x"'}, 200),
        ({"if-unmodified-since": LATER, "if-match": '"another"'}, 412),
        ({"if-unmodified-since": EARLIER, "if-modified-since": LATER}, 412),
        ({"range": "bytes=0-1", "if-range": DATE}, 206),
        ({"range": "bytes=0-1", "if-range": LATER}, 200),
        ({"range": "bytes=0-1", "if-range": EARLIER}, 200),
        ({"range": "bytes=0-1", "if-range": "no date"}, 200),
    ],
)
def test_conditions_on_the_date(request_: dict[str, str], status: int) -> None:
    answer = without_the_blob(request_, '"x"', WHEN) or with_the_blob(request_, '"x"', 10, WHEN)
    assert answer.status == status
    assert answer.headers["last-modified"] == DATE
    without = without_the_blob(request_, '"x"') or with_the_blob(request_, '"x"', 10)
    assert without.status in (200, status), "without a date, conditions on it do not count"
    assert "last-modified" not in without.headers


def test_the_date_of_the_source(store: Store, origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", etag=None, last_modified=DATE)
    got = ask(InFlightResponse(store, url, url))
    assert got.headers["last-modified"] == DATE
    assert ask(InFlightResponse(store, url, url), if_modified_since=DATE).status == 304


def test_a_producer_that_comes_later(store: Store) -> None:
    async def main() -> None:
        waiting = [Client(InFlightResponse(store, "report", wait_for=50)) for _ in range(3)]
        head = Client(InFlightResponse(store, "report", wait_for=50), "HEAD")
        await asyncio.sleep(0)
        with store.create("report", media_type="text/csv") as blob:
            blob.write(DATA[:1000])
            for each in waiting:
                await each.has(1000)
                assert each.headers["content-type"] == "text/csv"
            blob.write(DATA[1000:])
        for each in (*waiting, head):
            await each.task
            assert (each.status, each.body) == (200, b"" if each is head else DATA)

    asyncio.run(main())


def test_a_producer_that_does_not_come(store: Store) -> None:
    assert ask(InFlightResponse(store, "report", wait_for=0.05)).status == 404
    assert ask(InFlightResponse(store, "report", [DATA], wait_for=0.05)).body == DATA
    with pytest.raises(ValueError, match="wait_for"):
        InFlightResponse(store, "report", wait_for=-1)


@pytest.mark.parametrize(
    ("wanted", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-999", (10, 1000)),
        ("bytes=10-1000", None),  # not there yet: perhaps there is no such byte
        ("bytes=10-", None),
        ("bytes=-10", None),
        ("bytes=20-10", None),
        ("bytes=0-1,5-6", None),
    ],
)
def test_a_range_of_what_has_no_size_yet(
    wanted: str, span: tuple[int, int] | None, store: Store
) -> None:
    async def main() -> None:
        with store.create("report") as blob:
            blob.write(DATA[:1000])
            blob.flush()
            client = Client(InFlightResponse(store, "report"), range=wanted)
            if span is not None:
                await client.task
            else:
                await client.has(1000)
            blob.write(DATA[1000:])
        await client.task
        if span is None:
            assert (client.status, client.body) == (200, DATA)
            return
        start, end = span
        assert (client.status, client.body) == (206, DATA[start:end])
        assert client.headers["content-range"] == f"bytes {start}-{end - 1}/*"
        assert client.headers["content-length"] == str(end - start)

    asyncio.run(main())


def test_a_flight_that_ends_with_its_last_client(store: Store) -> None:
    is_over = threading.Event()

    def arriving() -> Iterator[bytes]:
        yield DATA[:1000]
        is_over.wait()

    async def main() -> None:
        client = Client(InFlightResponse(store, "report", arriving(), linger=False))
        await client.has(1000)
        client.task.cancel()
        await asyncio.wait([client.task])

    asyncio.run(main())
    wait_until(lambda: not store.is_in_flight("report"))
    is_over.set()
    assert "report" not in store


def test_a_server_in_front_sends_what_is_complete(store: Store) -> None:
    def response(key: str, **options: Any) -> InFlightResponse:
        return InFlightResponse(store, key, [DATA], filename="a.bin", **options)

    for key in (KEY, "a name"):
        got = ask(response(key, x_accel="/inner"))
        assert (got.status, got.body) == (200, DATA)  # it was not complete
        wait_until(partial(store.__contains__, key))
        got = ask(response(key, x_accel="/inner"))
        inner = got.headers["x-accel-redirect"]
        assert inner == "/inner" + store.path(key).removeprefix(store.folder)
        assert (got.status, got.body, "content-length" in got.headers) == (200, b"", False)
        assert got.headers["content-disposition"] == 'attachment; filename="a.bin"'
        got = ask(response(key, x_sendfile=True))
        assert got.headers["x-sendfile"] == quote(store.path(key))
        got = ask(response(key, x_sendfile=True), if_none_match='"another"')
        assert (got.status, got.body) == (200, DATA)  # it cannot judge conditions
        assert ask(response(key, x_sendfile=True), "HEAD").headers["content-length"] == str(SIZE)
    with pytest.raises(ValueError, match="location of nginx"):
        response(KEY, x_accel="inner/")
