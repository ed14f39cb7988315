"""What real servers send: heads, locations, lengths and versions that a plain client takes."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shmstream.errors import SourceError
from shmstream.sources import http_client
from shmstream.sources.http import HTTPSource
from tests.support.feeds import BLOB, SIZE, fails_to_open, read, use
from tests.support.quirks import Asked, Quirks, Reply, ranged


@pytest.fixture(autouse=True, params=["by hand", "by kernel"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the bytes are taken."""
    use(request.param)
    yield
    use("by hand")


def gives(quirks: Quirks, reply: Reply) -> bytes:
    """The blob, from a server that answers so; it is asked twice, for its kept connections."""
    quirks.script = lambda _: reply
    found = [read(HTTPSource(f"{quirks.url}/blob")) for _ in range(2)]
    assert found[0] == found[1]
    return found[0]


GOOD = Reply(body=BLOB)


# Locations.


LOCATIONS = {
    "/data?sig=a%2bB%3d%3d": "/data?sig=a%2bB%3d%3d",
    "/a/../b/./c//d?x": "/a/../b/./c//d?x",
    "HERE/a/%7euser/..?q=%2F%2f": "/a/%7euser/..?q=%2F%2f",
    "HERE": "/",
    "HERE?x=1": "/?x=1",
    "//127.0.0.1:PORT/%e2%82%ac": "/%e2%82%ac",
    "?x=/../%3a": "/there/here?x=/../%3a",
    "next?a=b+c&d=e;f": "/there/next?a=b+c&d=e;f",
    "../up": "/up",
    "/a|b\"c<d>^`{}\\?'*": "/a|b\"c<d>^`{}\\?'*",
    "/100%?50%&%zz": "/100%?50%&%zz",
    "/with space?a b": "/with%20space?a%20b",
    "/fragment?x#part": "/fragment?x",
    "/empty?": "/empty?",
    "/a:b@c": "/a:b@c",
    "/caf\xc3\xa9?\xe9": "/caf%C3%A9?%E9",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_location_goes_on_byte_for_byte(quirks: Quirks, location: str) -> None:
    """A signature in it is made of its very text."""
    expected = LOCATIONS[location]
    told = location.replace("HERE", quirks.url).replace("PORT", str(quirks.port))

    def script(asked: Asked) -> Reply:
        if asked.path == "/there/here":
            return Reply(307, {"Location": told})
        return GOOD if asked.path == expected else Reply(403)

    quirks.script = script
    read(HTTPSource(f"{quirks.url}/there/here"))
    assert quirks.asked[-1].path == expected


@pytest.mark.parametrize("path", ["/a/../b?sig=%2b%2B+", "/%7e", "/?", "/a//b/."])
def test_a_url_goes_out_as_it_is(quirks: Quirks, path: str) -> None:
    quirks.script = lambda _: GOOD
    read(HTTPSource(f"{quirks.url}{path}#fragment"))
    assert quirks.asked[-1].path == path


def test_what_no_url_has_is_escaped(quirks: Quirks) -> None:
    quirks.script = lambda _: GOOD
    read(HTTPSource(f"{quirks.url}/a b/caf\u00e9{{}}?x=|\u20ac"))
    assert quirks.asked[-1].path == "/a%20b/caf%C3%A9%7B%7D?x=%7C%E2%82%AC"


def test_a_location_goes_to_a_proxy_byte_for_byte(
    quirks: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", quirks.url)
    there = "http://blob.invalid/a/../b?sig=%2b"
    quirks.script = lambda asked: (
        Reply(302, {"Location": there}) if asked.path.endswith("/x") else GOOD
    )
    read(HTTPSource("http://origin.invalid/x"))
    assert [each.path for each in quirks.asked] == ["http://origin.invalid/x", there]


# Heads.


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers(quirks: Quirks, status: int) -> None:
    hint = (
        f"HTTP/1.1 {status} Early\r\nLink: </x>; rel=preload\r\nContent-Length: 7\r\n\r\n".encode()
    )
    assert gives(quirks, replace(GOOD, before=hint)) == BLOB
    assert gives(quirks, replace(GOOD, before=hint * 20)) == BLOB


def test_interim_answers_without_end(quirks: Quirks) -> None:
    quirks.script = lambda _: replace(GOOD, before=b"HTTP/1.1 103 Early\r\n\r\n" * 100_000)
    assert "its head has more than" in fails_to_open(HTTPSource(quirks.url)).reason


def test_an_answer_that_a_proxy_has_changed(quirks: Quirks) -> None:
    assert gives(quirks, replace(GOOD, status=203)) == BLOB
    assert HTTPSource(quirks.url).describe().size == SIZE


@pytest.mark.parametrize("count", [99, 100, 101, 5000])
def test_many_headers(quirks: Quirks, count: int) -> None:
    many: dict[str, str | list[str] | None] = {
        f"X-Custom-{each}": "x" for each in range(count // 2)
    }
    many |= {"Set-Cookie": ["a=b"] * (count - count // 2), "ETag": '"tag"'}
    quirks.script = lambda _: replace(GOOD, headers=many)
    source = HTTPSource(f"{quirks.url}/blob")
    assert read(source) == read(source) == BLOB
    assert source.describe().validator == '"tag"'


@pytest.mark.parametrize("length", [65_000, 70_000, 500_000])
def test_a_long_header(quirks: Quirks, length: int) -> None:
    """Such as a policy of a server in between, or all its cookies."""
    quirks.script = lambda _: GOOD.but(X_Long="x" * length, ETag='"tag"')
    source = HTTPSource(f"{quirks.url}/blob")
    assert read(source) == read(source) == BLOB
    assert source.describe().validator == '"tag"'


def test_headers_over_several_lines(quirks: Quirks) -> None:
    quirks.script = lambda _: GOOD.but(ETag='"a\r\n b"', Content_Type="text/x;\r\n\ta=b")
    about = HTTPSource(f"{quirks.url}/blob").describe()
    assert about.validator == '"a b"'
    assert about.media_type is not None
    assert about.media_type.split() == ["text/x;", "a=b"]


@pytest.mark.parametrize("line", ["this is no field", ": a value", "A Name: x", "Odd: a\rb"])
def test_a_line_that_is_no_field_hides_no_other(quirks: Quirks, line: str) -> None:
    first, _, rest = GOOD.but(ETag='"tag"').head().partition(b"\r\n")
    head = b"\r\n".join([first, line.encode(), rest])
    quirks.script = lambda _: Reply(pieces=(head, BLOB))
    source = HTTPSource(f"{quirks.url}/blob")
    with source.open() as feed:
        assert (feed.size, feed.validator) == (SIZE, '"tag"')
    assert read(source) == BLOB


def test_a_head_that_ends_in_the_middle(quirks: Quirks) -> None:
    head = GOOD.head()
    for end in (5, len(head) // 2, len(head) - 3, len(head) - 1):
        quirks.script = lambda _, end=end: Reply(pieces=(head[:end],), closes=True)  # type: ignore[misc]
        assert fails_to_open(HTTPSource(f"{quirks.url}/blob")).retryable


@pytest.mark.parametrize(
    "reply",
    [
        replace(GOOD, version="HTTP/1.0", closes=True),
        replace(GOOD.but(Content_Length=None), version="HTTP/1.0", closes=True),
        replace(GOOD.but(Connection="keep-alive"), version="HTTP/1.0"),
        GOOD.but(Transfer_Encoding="identity", Content_Length=str(SIZE)),
        GOOD.but(Transfer_Encoding="", Content_Length=str(SIZE)),
        replace(
            GOOD.but(Transfer_Encoding="Chunked", Content_Length="5"),
            body=b"%x;a=b\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (SIZE, BLOB),
        ),
        replace(
            GOOD.but(Transfer_Encoding=" chunked\t "),
            body=b"%08X \r\n%b\r\n00\r\n\r\n" % (SIZE, BLOB),
        ),
    ],
    ids=[
        "1.0",
        "1.0 without a length",
        "1.0 kept",
        "identity",
        "empty",
        "chunked and a length",
        "spaces",
    ],
)
def test_versions_and_framings(quirks: Quirks, reply: Reply) -> None:
    assert gives(quirks, reply) == BLOB


@pytest.mark.parametrize(
    "length", [str(2**63), str(2**64), "9" * 5000], ids=["2^63", "2^64", "5000 digits"]
)
def test_lengths_that_no_file_has(quirks: Quirks, length: str) -> None:
    """An error that says so, and no traceback."""
    quirks.script = lambda _: replace(GOOD.but(Content_Length=length), closes=True)
    source = HTTPSource(f"{quirks.url}/blob")
    assert "content-length" in fails_to_open(source).reason
    with pytest.raises(SourceError, match="content-length"):
        source.describe()
    told = {"Content-Range": f"bytes 10-{length}/{length}", "ETag": '"x"'}
    quirks.script = lambda asked: (
        replace(GOOD, status=206, headers=told, body=BLOB[10:])
        if "range" in asked.headers
        else GOOD
    )
    assert read(source, 10, '"x"') == BLOB, "it is asked for the whole"


# Proxies.


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("a.b, 192.168.1.0/24 ,c", "192.168.1.77:8080", True),
        ("192.168.1.5/24", "192.168.1.77", True),
        ("fd00::/8", "[fd00::1]:5000", True),
        ("fd00::/8", "[fe00::1]", False),
        ("[fd00::]/8", "[fd00::1]", False),
        ("10.0.0.0/8", "a10.0.0.1", False),
        ("10.0.0.0/8,,x/y,/", "registry.example", False),
        ("::/0", "10.0.0.1", False),
        ("0.0.0.0/0", "10.0.0.1", True),
        ("fd00::1", "[fd00::1]:5000", True),
        ("10.0.0.1", "10.0.0.1:5000", True),
        (".example.com", "a.example.com", True),
        ("example.com", "a.example.com", True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("example.com:8080", "example.com:8080", True),
        ("example.com:8080", "example.com", False),
        ("*", "anything", True),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_networks_without_a_proxy(
    no_proxy: str, host: str, is_direct: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{each}_proxy", raising=False)
        monkeypatch.delenv(f"{each}_proxy".upper(), raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv(name, no_proxy)
    found = http_client._proxy_for(http_client.parse(f"https://{host}/"))
    assert (found is None) is is_direct


def test_the_limit_of_http_client_is_as_it_was() -> None:
    """Other code of the process relies on it."""
    assert http.client._MAXHEADERS == 100  # type: ignore[attr-defined]
    assert socket.getdefaulttimeout() is None


def test_parts(quirks: Quirks) -> None:
    """A part over a kept connection, with a head of many headers."""
    many: dict[str, str | list[str] | None] = {f"X-{each}": "x" for each in range(200)}
    whole = replace(GOOD, headers={**many, "ETag": '"x"'})
    quirks.script = lambda asked: ranged(asked, whole)
    source = HTTPSource(f"{quirks.url}/blob")
    for offset in (0, 10, SIZE - 1):
        assert read(source, offset, '"x"') == BLOB[offset:]
    assert len({each.connection for each in quirks.asked}) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 501])
def test_a_signed_url_that_is_good_for_get_only(quirks: Quirks, status: int) -> None:
    for whole in (replace(GOOD, headers={"ETag": '"x"', "Content-Type": "a/b"}), Reply()):
        quirks.script = lambda asked, whole=whole: (  # type: ignore[misc]
            Reply(status) if asked.method == "HEAD" else ranged(asked, whole)
        )
        about = HTTPSource(f"{quirks.url}/blob").describe()
        assert about.size == len(whole.body)
        if whole.body:
            assert (about.validator, about.media_type) == ('"x"', "a/b")
    quirks.script = lambda asked: Reply(status) if asked.method == "HEAD" else GOOD
    assert HTTPSource(f"{quirks.url}/blob").describe().size == SIZE
    quirks.script = lambda _: Reply(status)
    with pytest.raises(SourceError) as caught:
        HTTPSource(f"{quirks.url}/blob").describe()
    assert caught.value.status == status
