"""The HTTP client: connections, refusals, redirects, credentials, TLS, proxies and processes."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
from collections.abc import Callable
from email.utils import formatdate
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import hypothesis
import psutil
import pytest
import urllib3
from hypothesis import strategies as some

from shmstream.errors import SourceError
from shmstream.sources import http_client
from shmstream.sources.http import HTTPSource, close_pools
from shmstream.sources.http_tls import USUAL_TLS
from tests.support.feeds import BLOB, OTHER, SIZE, fails_to_open, given, read
from tests.support.interpreters import Interpreter, Link, wait_until
from tests.support.nginx import Nginx
from tests.support.origin import Origin
from tests.support.roles import sha256

Start = Callable[..., Interpreter]
SECRETS = {"Authorization": "Bearer s3cret", "Cookie": "id=s3cret", "X-Api-Key": "s3cret"}


def test_connections_are_used_again(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.serve("/redirect", status=302, headers={"Location": "/blob"})
    for _ in range(2):
        assert read(HTTPSource(url)) == BLOB
    assert read(HTTPSource(origin.url("/redirect"))) == BLOB
    fails_to_open(HTTPSource(origin.url("/nothing")))
    assert len({request.connection for request in origin.requests()}) == 1
    close_pools()
    assert read(HTTPSource(url)) == BLOB
    assert len({request.connection for request in origin.requests()}) == 2


def connections(origin: Origin) -> int:
    """How many connections to `origin` this process has."""
    everything = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == origin.port for each in everything)


def test_pools_are_closed_at_once(origin: Origin) -> None:
    """Also while somebody refers to an answer, and by that to the pool of its connection."""
    url = urllib3.util.parse_url(origin.serve("/blob", seed=1, size=SIZE))
    usual = connections(origin)
    reply = http_client.Client("it").ask("GET", url, {})
    assert reply.response.read() == BLOB
    in_use = HTTPSource(url.url).open()
    with in_use as feed:
        body = given(feed)
        first = next(body)
        idle = http_client.Client("it").ask("HEAD", url, {})
        idle.response.read()
        assert connections(origin) == usual + 2
        close_pools()
        assert connections(origin) == usual + 1
        assert b"".join([first, *body]) == BLOB
    assert connections(origin) == usual


def test_a_request_while_the_pools_are_closed(origin: Origin) -> None:
    """A thread has chosen its pool, which another thread closes then."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    usual = connections(origin)
    manager = http_client._pool_for("http", None, USUAL_TLS, guarded=False)
    pool = manager.connection_from_url(url)
    close_pools()
    assert pool.urlopen("GET", "/blob").data == BLOB
    assert connections(origin) == usual


def test_a_pool_of_the_users_own(origin: Origin) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    with urllib3.PoolManager(headers={"X-Unused": "1"}) as pool:
        assert read(HTTPSource(url, pool=pool)) == BLOB
        assert len(pool.pools) == 1


def test_a_pool_that_is_bounded_has_every_connection_back(origin: Origin) -> None:
    """A request for one connection more than the pool has would wait for ever."""
    url = origin.serve("/blob", seed=1, size=SIZE, stall_after=1000)
    origin.serve("/refused", seed=1, size=SIZE, headers={"Content-Encoding": "gzip"})
    with urllib3.PoolManager(maxsize=1, block=True) as pool:
        for _ in range(2):
            with HTTPSource(url, pool=pool).open() as feed:
                next(given(feed))
            fails_to_open(HTTPSource(origin.url("/refused"), pool=pool))
        origin.change("/blob", stall_after=None)
        assert read(HTTPSource(url, pool=pool)) == BLOB


@pytest.mark.parametrize("fault", ["reset_after", "close_after"])
def test_a_connection_that_ends_before_the_answer(origin: Origin, fault: str) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", count=1, **{fault: -1})
    assert fails_to_open(source).retryable
    assert read(source) == BLOB


def test_no_connection_in_time(direct: None) -> None:  # noqa: ARG001
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):  # the server never accepts: the next client gets no answer
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        source = HTTPSource(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=(0.1, 3600))
        error = fails_to_open(source)
    assert error.retryable
    assert "no answer in time" in error.reason


def test_an_origin_that_is_away_for_a_while(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE, stall_after=1000))
    feed = source.open()
    next(given(feed))
    origin.refuse()
    with feed, pytest.raises(SourceError) as caught:
        for _ in given(feed):
            pass
    assert caught.value.retryable
    error = fails_to_open(source, 1000)
    assert error.retryable
    assert "Connection refused" in error.reason
    origin.accept()
    origin.change("/blob", stall_after=None)
    assert read(source, 1000) == BLOB[1000:]


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 407, 410, 418])
def test_an_answer_that_stays_no(origin: Origin, status: int) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/blob", status=status)))
    assert not error.retryable
    assert str(status) in error.reason


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass(origin: Origin, status: int) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    origin.change("/blob", count=2, status=status, headers={"Retry-After": "7"})
    for _ in range(2):
        error = fails_to_open(source)
        assert error.retryable
        assert error.retry_after == 7
    assert read(source) == BLOB


def test_retry_after_is_a_date_or_unknown(origin: Origin) -> None:
    for told, least, most in (
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e9, 1e10),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
    ):
        source = HTTPSource(origin.serve("/", status=503, headers={"Retry-After": told}))
        assert least <= (fails_to_open(source).retry_after or 0) <= most
    for told in ("soon", "-1", "", "99 Nov"):
        source = HTTPSource(origin.serve("/", status=503, headers={"Retry-After": told}))
        assert fails_to_open(source).retry_after is None
    assert fails_to_open(HTTPSource(origin.serve("/", status=503))).retry_after is None


def test_a_name_that_does_not_resolve(direct: None) -> None:  # noqa: ARG001
    error = fails_to_open(HTTPSource("http://shmstream.invalid/blob"))
    assert error.retryable
    assert "cannot be resolved" in error.reason


def test_an_error_survives_pickling(origin: Origin) -> None:
    error = fails_to_open(HTTPSource(origin.serve("/", status=503, headers={"Retry-After": "1"})))
    assert pickle.loads(pickle.dumps(error)).facts == error.facts


def seen_secrets(server: Origin) -> set[str]:
    names = {name.lower() for name in SECRETS}
    return names & set(chain.from_iterable(request.headers for request in server.requests("/blob")))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_origin(origin: Origin, status: int) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    url = origin.serve("/here", status=status, headers={"Location": "blob"})
    assert read(HTTPSource(url, headers=SECRETS), 10, '"1-300000"') == BLOB[10:]
    assert len(seen_secrets(origin)) == 3


def test_a_challenge_of_another_origin_is_not_told(origin: Origin, elsewhere: Origin) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1/token"'}
    url = elsewhere.serve("/blob", status=401, headers=challenge)
    assert fails_to_open(HTTPSource(url)).challenge == challenge["WWW-Authenticate"]
    here = origin.serve("/blob", status=307, headers={"Location": url})
    error = fails_to_open(HTTPSource(here, auth=("me", "secret")))
    assert (error.status, error.challenge) == (401, None)


@pytest.mark.parametrize("where", ["port", "host", "user"])
def test_credentials_do_not_follow_to_another_origin(
    origin: Origin, elsewhere: Origin, where: str
) -> None:
    server = elsewhere if where != "host" else origin
    server.serve("/blob", seed=1, size=SIZE)
    there = server.url("/blob", "localhost" if where == "host" else None)
    if where == "user":
        there = there.replace("//", "//them:theirs@")
    url = origin.serve("/here", status=307, headers={"Location": there})
    headers = SECRETS | {"Accept": "image/png", "User-Agent": "test"}
    source = HTTPSource(url, headers=headers)
    assert read(source, 10, '"1-300000"') == BLOB[10:]
    assert seen_secrets(server) == set()
    (request,) = server.requests("/blob")
    assert "s3cret" not in str(request)
    assert (request.headers["accept"], request.headers["user-agent"]) == ("image/png", "test")
    assert request.range == "bytes=10-"
    assert origin.requests("/here")[0].headers["x-api-key"] == "s3cret"


def test_credentials_do_not_come_back(origin: Origin, elsewhere: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    elsewhere.serve("/there", status=302, headers={"Location": origin.url("/blob")})
    url = origin.serve("/here", status=302, headers={"Location": elsewhere.url("/there")})
    assert read(HTTPSource(url, auth=("me", "s3cret"))) == BLOB
    assert origin.requests("/here")[0].headers["authorization"].startswith("Basic ")
    assert seen_secrets(origin) == set()


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://[", "http://a:b:c/", "\x01"],
)
def test_a_redirect_to_no_http_url(origin: Origin, location: str) -> None:
    url = origin.serve("/here", status=302, headers={"Location": location})
    assert not fails_to_open(HTTPSource(url)).retryable


def test_redirects_without_end(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/here", status=302, headers={"Location": "/here"}))
    assert not fails_to_open(source).retryable
    assert len(origin.requests()) == 11
    assert not fails_to_open(HTTPSource(origin.serve("/nowhere", status=302))).retryable


def test_ten_redirects(origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    origin.serve("/here", status=302, headers={"Location": "/here"})
    origin.change("/here", first=9, headers={"Location": "/blob"})
    assert read(HTTPSource(origin.url("/here"))) == BLOB


def test_user_and_password_in_the_url(origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    url = origin.url("/blob?key=s3cret&bare#s3cret").replace("//", "//me:s3%40cret@")
    source = HTTPSource(url)
    assert read(source) == BLOB
    (request,) = origin.requests()
    assert request.path == "/blob?key=s3cret&bare"
    assert request.headers["authorization"] == "Basic bWU6czNAY3JldA=="
    assert source.name == origin.url("/blob?key=***&***")
    origin.refuse()
    for text in (repr(source), str(fails_to_open(source)), repr(fails_to_open(source))):
        assert "s3" not in text


def test_authentication(origin: Origin) -> None:
    url = origin.serve("/blob", size=10)
    read(HTTPSource(url, auth=("me", "pa:ss")))
    read(HTTPSource(url, auth="token"))
    read(HTTPSource(url.replace("//", "//a:b@"), auth="token"))
    read(HTTPSource(url.replace("//", "//a:b@"), headers={"authorization": "mine"}))
    sent = [request.headers["authorization"] for request in origin.requests()]
    assert sent == ["Basic bWU6cGE6c3M=", "Bearer token", "Bearer token", "mine"]
    for mistake in ({"auth": ("a:b", "c")}, {"auth": "t", "headers": SECRETS}):
        with pytest.raises(ValueError):
            HTTPSource(url, **mistake)


@pytest.mark.parametrize(
    "url",
    ["http://a/\r\nX: y", "http://a/\n", "http://a\x00/", "http:///x", "ftp://a/", "a/b", "http://",
     "http://me:s3cret@[", "http://me:s3cret@a:port/", "http://me:s3cret@exa mple/"],
)  # fmt: skip
def test_a_url_that_is_not_valid(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        HTTPSource(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [{"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X": "a\0"}, {"X\r\nY": "b"}, {"": "a"}, {"X Y": "a"},
     {"X:": "a"}, {"Range": "bytes=1-"}, {"Accept-Encoding": "gzip"}, {"If-Range": "x"}],
)  # fmt: skip
def test_a_header_that_is_not_valid(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        HTTPSource("http://localhost/", headers=headers)
    if "X" in headers:
        with pytest.raises(ValueError):
            HTTPSource("http://localhost/", auth=headers["X"])


def test_a_source_can_be_sent_to_another_process(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE), auth="token")
    assert read(pickle.loads(pickle.dumps(source))) == BLOB


def test_tls(tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HTTPSource(tls_origin.serve("/blob", seed=1, size=SIZE))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    error = fails_to_open(source)
    assert not error.retryable
    assert "certificate" in error.reason
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    close_pools()
    assert read(source) == BLOB
    error = fails_to_open(HTTPSource(tls_origin.url("/blob", "127.0.0.1")))
    assert not error.retryable
    assert "127.0.0.1" in error.reason


def test_no_redirect_from_https_to_http(
    origin: Origin, tls_origin: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    there = origin.serve("/blob", seed=1, size=SIZE)
    source = HTTPSource(tls_origin.serve("/here", status=302, headers={"Location": there}))
    assert "https to http" in fails_to_open(source).reason
    assert origin.requests() == []
    with_digest = HTTPSource(
        tls_origin.url("/here"), headers=SECRETS, digest=f"sha256:{sha256(BLOB)}"
    )
    assert read(with_digest) == BLOB, "the digest decides"
    assert seen_secrets(origin) == set()
    assert with_digest.describe().size == SIZE
    there = tls_origin.serve("/blob", seed=1, size=SIZE)
    source = HTTPSource(
        origin.serve("/here", status=302, headers={"Location": there}), headers=SECRETS
    )
    assert read(source) == BLOB
    assert seen_secrets(tls_origin) == set()


def test_tls_where_there_is_none(nginx: Nginx) -> None:
    error = fails_to_open(HTTPSource(nginx.url("").replace("http", "https")))
    assert "SSL" in error.reason


def test_a_proxy_of_the_environment(
    origin: Origin, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.serve("http://blob.invalid/blob", seed=1, size=SIZE)
    proxy = elsewhere.url("").replace("//", "//me:s3cret@")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    there = "http://them:s3cret@blob.invalid/blob#fragment"
    elsewhere.serve("http://blob.invalid/here", status=302, headers={"Location": there})
    assert read(HTTPSource("http://me:s3cret@blob.invalid/here")) == BLOB
    hop, request = elsewhere.requests()
    assert (hop.path, request.path) == ("http://blob.invalid/here", "http://blob.invalid/blob")
    assert request.headers["host"] == "blob.invalid"
    assert request.headers["authorization"] == hop.headers["authorization"]
    assert request.headers["proxy-authorization"] == "Basic bWU6czNjcmV0"
    assert read(HTTPSource(origin.serve("/blob", seed=2, size=SIZE))) == OTHER
    assert "proxy-authorization" not in origin.requests()[0].headers
    elsewhere.refuse()
    error = fails_to_open(HTTPSource("http://blob.invalid/blob"))
    assert error.retryable
    assert "s3cret" not in str(error)


def test_a_proxy_for_tls_sees_nothing(
    tls_origin: Origin, elsewhere: Origin, tls_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_certificate))
    monkeypatch.setenv("https_proxy", elsewhere.url("").replace("//", "//me:s3cret@"))
    source = HTTPSource(tls_origin.serve("/blob", seed=1, size=SIZE), headers=SECRETS)
    assert read(source) == BLOB
    (request,) = elsewhere.requests()
    assert (request.method, request.path) == ("CONNECT", f"localhost:{tls_origin.port}")
    assert request.headers["proxy-authorization"] == "Basic bWU6czNjcmV0"
    assert "cookie" not in request.headers
    assert "proxy-authorization" not in tls_origin.requests()[0].headers


def test_a_proxy_without_a_scheme_and_one_that_is_unknown(
    elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.serve("http://blob.invalid/blob", seed=1, size=SIZE)
    monkeypatch.setenv("all_proxy", f"127.0.0.1:{elsewhere.port}")
    assert read(HTTPSource("http://blob.invalid/blob")) == BLOB
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    assert not fails_to_open(HTTPSource("http://blob.invalid/blob")).retryable


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "upper"},
        {"HTTP_PROXY": "upper", "http_proxy": "lower"},
        {"HTTP_PROXY": "upper", "http_proxy": ""},
        {"HTTP_PROXY": "upper", "http_proxy": "", "ALL_PROXY": "all"},
        {"HTTP_PROXY": "", "all_proxy": "all", "ALL_PROXY": "ALL"},
        {"HTTP_PROXY": "a client's", "REQUEST_METHOD": "GET"},
        {"HTTP_PROXY": "a client's", "REQUEST_METHOD": "GET", "http_proxy": "lower"},
        {"HTTPS_PROXY": "another", "REQUEST_METHOD": "GET"},
    ],
)
def test_a_proxy_is_found_where_urllib_finds_it(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxies = getproxies()
    for scheme in ("http", "https"):
        proxy = proxies.get(scheme) or proxies.get("all")
        expected = f"http://{proxy}" if proxy else None
        assert http_client._proxy_for(http_client.parse(f"{scheme}://host/")) == expected


def test_a_forked_child_makes_its_own_connections(origin: Origin) -> None:
    source = HTTPSource(origin.serve("/blob", seed=1, size=SIZE))
    assert read(source) == BLOB
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if read(source) == BLOB else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert read(source) == BLOB
    mine, childs, again = (request.connection for request in origin.requests())
    assert mine == again != childs


def fetch(link: Link, url: str) -> None:
    """A client process: fetch the blob as often as it is told to, and say the outcome."""
    source = HTTPSource(url)
    while link.hear() == "fetch":
        try:
            link.say(sha256(read(source)))
        except SourceError as error:
            link.say(error.reason)
    close_pools()


def test_many_processes_while_the_origin_changes(origin: Origin, start: Start) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    clients = [start(fetch, url) for _ in range(4)]

    def ask_all() -> set[Any]:
        for client in clients:
            client.say("fetch")
        return {client.hear() for client in clients}

    assert ask_all() == {sha256(BLOB)}
    origin.change("/blob", seed=2)
    assert ask_all() == {sha256(OTHER)}
    origin.change("/blob", status=503)
    assert ask_all() == {"it answered 503 Whatever"}
    assert len(origin.requests("/blob")) == 12
    for client in clients:
        client.say("end")
        assert client.finish() == ""


def keep_an_origin(link: Link) -> None:
    origin = Origin()
    link.say(origin.pid)
    link.hear()
    origin.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_origin_ends_with_its_test(start: Start, how: signal.Signals) -> None:
    test = start(keep_an_origin)
    server = psutil.Process(test.hear())
    test.signal(how)
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


# What is answered.


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(some.integers(0, 4102444800))
def test_a_date(seconds: int) -> None:
    assert http_client.date(formatdate(seconds, usegmt=True)) == seconds
    assert http_client.date(formatdate(seconds, localtime=False)) == seconds


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(some.integers(0, 10**6))
def test_a_number_of_seconds(seconds: int) -> None:
    assert http_client._seconds(str(seconds)) == seconds


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(
    some.text(max_size=40) | some.text(alphabet="MonJaSep 0129:,+-GMTZ()", max_size=40)
)
@hypothesis.example("Mon, 01 Jan 99999 00:00:00 GMT")
@hypothesis.example("Mon, 01 Jan 0000 00:00:00 GMT")
@hypothesis.example("Mon, 02 Jan " + "9" * 5000 + " 03:04:05 GMT")
@hypothesis.example("Mon, 02 Jan 2023 " + "9" * 400 + ":04:05 GMT")
@hypothesis.example("9" * 400)
@hypothesis.example("\u0663")
@hypothesis.example(" ")
def test_whatever_a_date_is(text: str) -> None:
    found = http_client.date(text)
    assert found is None or isinstance(found, int)
    seconds = http_client._seconds(text)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(some.text(alphabet="htps:/@?#[]me.3cret%: ", max_size=30))
@hypothesis.example("http://me:s3cret/x@host")
@hypothesis.example("me:s3cret@host")
def test_whatever_a_url_is(text: str) -> None:
    """The text is a URL, or a ValueError that shows no password."""
    try:
        http_client.parse(text)
    except ValueError as error:
        shown = str(error)
    else:
        shown = ""
    assert "s3cret" not in shown
