"""`fetch`: keys, sources, headers, limits, and two processes that want the same blob."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.cli.fetch import key_of
from shmstream.storage.record import Record
from tests.cli.conftest import BLOB, DIGEST, SIZE, Begin, Run, flying
from tests.support.origin import Origin
from tests.support.roles import content


def test_a_path_in_the_store(run: Run, url: str, origin: Origin) -> None:
    code, out, told = run("fetch", url)
    assert code == 0
    assert Path(out.removesuffix("\n")).read_bytes() == BLOB
    assert re.fullmatch(rf"{re.escape(url)}: leads, 293.0 KiB(?: in .*)?\n", told)
    assert run("fetch", url, "--quiet") == (0, out, "")
    code, again, told = run("fetch", url)
    assert (code, again) == (0, out)
    assert told == f"{url}: stored, 293.0 KiB\n"
    assert len(origin.requests("/blob")) == 1


def test_connections(run: Run, url: str) -> None:
    code, _, told = run("fetch", url, "--connections", "0")
    assert (code, "--connections" in told) == (2, True)
    code, out, _ = run("fetch", url, "--digest", DIGEST, "--connections", "4")
    assert (code, Path(out.removesuffix("\n")).read_bytes()) == (0, BLOB)


def test_a_blob_is_not_hashed(run: Run, url: str, store: Store) -> None:
    for key, options, digest in (("a", (), DIGEST), ("b", ("--no-hash-named",), None)):
        assert run("fetch", url, "--key", key, *options)[0] == 0
        record = Record.read(store.path(key) + ".shmstream-record")
        assert record is not None
        assert record.digest == digest


def test_a_large_blob(run: Run, origin: Origin) -> None:
    """It comes over several connections, if nobody says otherwise."""
    url = origin.serve("/large", seed=1, size=64 << 20, rate=16 << 20)
    code, out, _ = run("fetch", url)
    assert code == 0
    assert Path(out.removesuffix("\n")).read_bytes() == content(1, 64 << 20)
    assert len({each.connection for each in origin.requests("/large")}) > 2


def test_a_digest_is_the_key(run: Run, url: str, store: Store) -> None:
    for digest in (DIGEST, DIGEST.removeprefix("sha256:").upper()):
        code, out, _ = run("fetch", url, "--digest", digest)
        assert code == 0
        assert out.strip() == os.path.join(store.folder, "blobs", *DIGEST.split(":"))
    assert [key for key, _ in store.blobs()] == [DIGEST]


def test_a_key_that_looks_like_a_digest(run: Run, url: str, store: Store) -> None:
    sha1 = hashlib.sha1(BLOB).hexdigest()
    for option in ("--digest", "--key"):
        code, out, told = run("fetch", url, option, sha1)
        assert (code, out) == (2, "")
        assert "'sha1:' in front" in told
        assert run("fetch", url, option, f"SHA1:{sha1.upper()}")[0] == 0
    wrong = run("fetch", url, "--key", "md5:" + "0" * 32)
    assert (wrong[0], "the bytes are not that blob" in wrong[2]) == (1, True)
    assert [key for key, _ in store.blobs()] == [f"sha1:{sha1}"]


def test_a_name_with_a_digest_and_a_size(run: Run, url: str, store: Store) -> None:
    digest, good = DIGEST[7:].upper(), ("--size", "300000", "--key", "mine")
    assert run("fetch", url, "--digest", "md5:" + "0" * 32, *good)[0] == 1
    assert run("fetch", url, *good, "--size", "1MB")[0] == 1
    code, out, _ = run("fetch", url, "--digest", digest, *good)
    assert (code, Path(out.strip()).read_bytes()) == (0, BLOB)
    assert run("fetch", "/nowhere", "--digest", digest, *good)[:2] == (0, out)
    assert [key for key, _ in store.blobs()] == ["mine"]


def test_keys_of_other_blobs(run: Run, url: str, store: Store, tmp_path: Path) -> None:
    """A URL without its credentials, an absolute path, or the text of `--key`."""
    (tmp_path / "file").write_bytes(BLOB)
    assert run("fetch", url.replace("//", "//me:secret@"))[0] == 0
    assert run("fetch", "file")[0] == 0
    assert run("fetch", "file", "--key", "mine")[0] == 0
    assert [key for key, _ in store.blobs()] == [url, str(tmp_path / "file"), "mine"]


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://me:secret@host/blob", "https://host/blob"),
        ("https://me:p@ss@host:1/a@b?c=d@e#f@g", "https://host:1/a@b?c=d@e#f@g"),
        ("https://one?name=a@b", "https://one?name=a@b"),
        ("https://two#a@b", "https://two#a@b"),
        ("https://host/http://me@there/", "https://host/http://me@there/"),
    ],
)
def test_a_key_is_the_url_without_credentials(url: str, key: str) -> None:
    assert key_of(url) == key


def test_wrong_bytes(run: Run, origin: Origin, url: str, tmp_path: Path) -> None:
    origin.change("/blob", wrong_at=SIZE // 2)
    (tmp_path / "out").write_bytes(b"what was there")
    code, out, told = run("fetch", url, "--digest", DIGEST, "-o", "out")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: .*not {DIGEST}: the bytes are not that blob\n", told)
    assert (tmp_path / "out").read_bytes() == b"what was there"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "store"]


def test_no_source_has_it(run: Run, origin: Origin, url: str) -> None:
    """The first source refuses, the second has no such file: the message tells both reasons."""
    origin.refuse()
    code, out, told = run("fetch", url, "--source", "/no/such/file", "-o", "out")
    assert (code, out) == (1, "")
    assert told.startswith("Error: ")
    assert "Connection refused" in told
    assert "/no/such/file at offset 0: No such file or directory" in told
    assert not Path("out").exists()


def test_the_next_source(run: Run, origin: Origin, elsewhere: Origin, url: str) -> None:
    origin.change("/blob", status=404)
    other = elsewhere.serve("/other", seed=1, size=SIZE)
    code, out, _ = run("fetch", url, "--digest", DIGEST, "--source", other, "--quiet")
    assert code == 0
    assert Path(out.strip()).read_bytes() == BLOB


def test_headers_go_to_their_host_only(
    run: Run, origin: Origin, elsewhere: Origin, url: str
) -> None:
    origin.change("/blob", status=404)
    here, other = origin.serve("/more", status=404), elsewhere.serve("/other", seed=1, size=SIZE)
    sources = ("--source", here, "--source", other)
    headers = ("--header", "Authorization: Bearer secret", "--header", "X-Colour:  blue: dark")
    code, _, told = run("fetch", url, *sources, *headers, "-v")
    assert code == 0
    assert "secret" not in told
    for request in origin.requests():
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["x-colour"] == "blue: dark"
    [request] = elsewhere.requests()
    assert "authorization" not in request.headers
    assert "x-colour" not in request.headers


def test_two_at_once(begin: Begin, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=100_000)
    first = begin("fetch", url, "-o", "-")
    flying(store)
    second = begin("fetch", url, "-o", "-")
    flying(store, followers=1)
    origin.release()
    outcomes = [first.finish(), second.finish()]
    assert [code for code, _, _ in outcomes] == [0, 0]
    assert [out for _, out, _ in outcomes] == [BLOB, BLOB]
    assert [told.split(": ")[1].split(",")[0] for _, _, told in outcomes] == ["leads", "follows"]
    assert [each.method for each in origin.requests("/blob")] == ["GET"]


def test_what_was_interrupted_goes_on(
    begin: Begin, run: Run, store: Store, origin: Origin, url: str
) -> None:
    origin.change("/blob", count=1, stall_after=200_000)
    fetch = begin("fetch", url, "-o", "-")
    assert fetch.read(190_000) == BLOB[:190_000]
    flying(store, published=200_000)
    fetch.process.kill()
    fetch.process.wait()
    assert run("gc")[0] == 0
    code, out, told = run("fetch", url, "--verbose")
    assert code == 0
    assert Path(out.strip()).read_bytes() == BLOB
    assert f"INFO    {url}: resumed at 200000 bytes" in told
    assert f"INFO    {url}: complete, 300000 bytes" in told
    assert [each.range for each in origin.requests("/blob")] == [None, "bytes=200000-"]


def test_retries_are_told(run: Run, origin: Origin, url: str) -> None:
    """Who waits for more than a second is told why; with --quiet nothing is told."""
    busy = {"status": 503, "headers": {"Retry-After": "1"}}
    for quiet in ((), ("--quiet",)):
        origin.change("/blob", first=len(origin.requests("/blob")), count=1, **busy)
        code, _, told = run("fetch", url, "--key", f"key of {quiet}", *quiet)
        assert code == 0
        line = f"{re.escape(url)} at offset 0: it answered 503 Whatever; that was try 1 of 8, the "
        assert bool(re.search(f"{line}next is in 1.0 s\n", told)) == (not quiet), told


def test_what_a_url_may_keep_secret_is_not_told(run: Run, origin: Origin) -> None:
    """The key is the whole URL, and its source is named without the values of the query."""
    url = origin.serve("/blob?token=secret", seed=1, size=SIZE)
    shown = url.replace("secret", "***")
    for status, code in ((503, 0), (403, 1)):
        first = len(origin.requests("/blob?token=secret"))
        busy = {"status": status, "headers": {"Retry-After": "1"}}
        origin.change("/blob?token=secret", first=first, count=1, **busy)
        found, _, told = run("fetch", f"{url}#{status}")
        assert found == code
        assert "secret" not in told
        assert f"{shown} at offset 0: it answered {status}" in told
        assert all(line.count("http:") == 1 for line in told.splitlines())


def test_a_limit_evicts(run: Run, origin: Origin, url: str, store: Store) -> None:
    assert run("fetch", url)[0] == 0
    other = origin.serve("/other", seed=2, size=SIZE)
    assert run("fetch", other, "--max-bytes", "400kB")[0] == 0
    assert [key for key, _ in store.blobs()] == [other]
