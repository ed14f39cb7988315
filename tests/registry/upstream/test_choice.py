"""Upstreams as they are: several URLs, prefixes, certificates, patterns, and who gets nothing."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmstream.errors import SourceError
from shmstream.mirror.settings import Mirror
from shmstream.registry.settings import BadSetting, Settings, Upstream
from shmstream.registry.upstream.choice import Upstreams, check
from shmstream.registry.upstream.repository import Repository, RepositorySource
from shmstream.upstreams.notes import Notes
from tests.support.images import digest_of, image
from tests.support.origin import bound
from tests.support.quirks import Asked, Quirks, Reply, nothing, plain

IMAGE = image(31, [200_000])
LAYER = IMAGE.layers[0]
ACCEPT = "*/*"


@contextmanager
def another(tls: ssl.SSLContext | None = None) -> Iterator[Quirks]:
    server = Quirks(tls)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def second(direct: None) -> Iterator[Quirks]:  # noqa: ARG001
    with another() as server:
        yield server


def chosen(folder: str, *told: Upstream, **settings: Any) -> Upstreams:
    Path(folder).mkdir(exist_ok=True)
    return Upstreams(Settings(told, folder, **settings), Notes(folder, "reach"))


def repository(upstreams: Upstreams, namespace: str | None = None, name: str = "a/b") -> Repository:
    upstream = upstreams.get(namespace)
    assert upstream is not None
    return Repository(upstream, name)


def source_of(found: Repository, digest: str = LAYER) -> RepositorySource:
    return found.source("blobs", digest, lambda *_: None)


def pulled(source: RepositorySource, offset: int = 0) -> bytes:
    with source.open(offset) as feed:
        return b"".join(bytes(each) for each in feed)


def test_the_next_url_has_what_the_first_has_not(
    folder: str, quirks: Quirks, second: Quirks
) -> None:
    second.script = plain(IMAGE)
    found = repository(chosen(folder, Upstream(None, quirks.url, (second.url,))))
    assert found.resolve("v1", ACCEPT).digest == IMAGE.digest
    assert digest_of(pulled(source_of(found))) == LAYER
    assert found.tags({}).content["tags"] == ["v1"]
    assert found.about("blobs", LAYER).size
    with pytest.raises(SourceError) as caught:
        found.resolve("v2", ACCEPT)
    assert caught.value.status == 404
    quirks.script = plain(IMAGE)
    second.asked.clear()
    assert found.resolve("v1", ACCEPT).digest == IMAGE.digest
    assert second.asked == [], "the first one that has it is enough"


def test_a_failure_tells_more_than_a_refusal(folder: str, quirks: Quirks, second: Quirks) -> None:
    """A mirror that does not have it proves nothing while the registry itself is away."""
    for urls in ((quirks.url, second.url), (second.url, quirks.url)):
        quirks.script = lambda _: Reply(503)
        second.script = nothing
        found = repository(chosen(folder, Upstream(None, urls[0], urls[1:])))
        with pytest.raises(SourceError) as caught:
            found.tags({})
        assert caught.value.status == 503


def test_an_url_that_is_away_is_asked_last(folder: str, quirks: Quirks) -> None:
    quirks.script = plain(IMAGE)
    with bound() as place:
        away = f"http://127.0.0.1:{place.getsockname()[1]}"
        found = repository(chosen(folder, Upstream(None, away, (quirks.url,))))
        first = found.upstream
        assert first.reach.problem is None
        assert found.resolve("v1", ACCEPT).digest == IMAGE.digest
    assert away in str(first.reach.problem), "operators are told"
    assert first.is_quiet is False, "another one answers"


def test_a_download_goes_on_at_another_url(folder: str, quirks: Quirks, second: Quirks) -> None:
    """The first one breaks off; the rest comes from the second one, from the same byte on."""
    whole = plain(IMAGE)
    second.script = whole

    def breaks_off(asked: Asked) -> Reply:
        reply = whole(asked)
        return Reply(reply.status, reply.headers, reply.body, cut=50_000)

    quirks.script = breaks_off
    source = source_of(repository(chosen(folder, Upstream(None, quirks.url, (second.url,)))))
    got = bytearray()
    with pytest.raises(SourceError), source.open() as feed:
        for each in feed:
            got += each
    assert 0 < len(got) <= 50_000
    got += pulled(source, len(got))
    assert digest_of(bytes(got)) == LAYER
    assert [each.headers.get("range") for each in second.asked] == [f"bytes={50_000}-"]


def test_parts_come_from_the_first_url(folder: str, quirks: Quirks, second: Quirks) -> None:
    """Several connections are no failure of the first one: the second URL is a failover."""
    quirks.script = second.script = plain(IMAGE)
    source = source_of(repository(chosen(folder, Upstream(None, quirks.url, (second.url,)))))
    with source.open() as feed, source.open_part(100_000, 150_000) as part:
        got = b"".join(bytes(each) for each in part)
        assert b"".join(bytes(each) for each in feed)[100_000:150_000] == got
    assert second.asked == []
    quirks.script = nothing
    with source.open_part(0, 50_000) as part:  # which the first one has no longer
        assert len(b"".join(bytes(each) for each in part)) == 50_000
    assert [each.headers["range"] for each in second.asked] == ["bytes=0-49999"]


PREFIXED = [
    ("", "dockerhub-proxy"),
    ("/v2/dockerhub-proxy", ""),
    ("/v2/dockerhub-proxy/", "other"),
]


def test_a_prefix_of_names(folder: str, quirks: Quirks) -> None:
    """What a project of Harbor, a pull-through rule of ECR or a remote repository needs."""
    quirks.script = plain(IMAGE)
    for path, prefix in PREFIXED:
        told = Upstream("docker.io", quirks.url + path, prefix=prefix)
        upstreams = chosen(folder, told)
        repository(upstreams, "docker.io", "debian").resolve("v1", ACCEPT)
        assert quirks.asked[-1].path == "/v2/dockerhub-proxy/library/debian/manifests/v1"
    plainly = repository(chosen(folder, Upstream("docker.io", quirks.url)), "docker.io", "debian")
    assert plainly.key != repository(upstreams, "docker.io", "debian").key, "grants differ"


def test_each_url_has_its_own_prefix(folder: str, quirks: Quirks, second: Quirks) -> None:
    second.script = plain(IMAGE)
    told = Upstream("docker.io", f"{quirks.url}/v2/proxy", (second.url,))
    repository(chosen(folder, told), "docker.io", "debian").resolve("v1", ACCEPT)
    assert quirks.asked[-1].path == "/v2/proxy/library/debian/manifests/v1"
    assert second.asked[-1].path == "/v2/library/debian/manifests/v1"


def test_patterns_of_namespaces(
    folder: str, quirks: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = quirks.port
    upstreams = chosen(
        folder,
        Upstream("*", "http://{namespace}"),
        Upstream("*.example.com", quirks.url, prefix="far"),
        Upstream("own.example.com", quirks.url, prefix="own"),
    )
    quirks.script = plain(IMAGE)
    for namespace, path in (("a.example.com", "far"), ("own.example.com", "own")):
        repository(upstreams, namespace).resolve("v1", ACCEPT)
        assert quirks.asked[-1].path == f"/v2/{path}/a/b/manifests/v1"
    for nothing_of_that_kind in (
        None,
        "library",
        "a/../b.c",
        "x@evil.example",
        "",
        "a..b",
        "{namespace}",
    ):
        assert upstreams.get(nothing_of_that_kind) is None
    own = upstreams.get("own.example.com")
    assert upstreams.get(f"127.0.0.1:{port}") is own, "it is at that host"
    inside = repository(upstreams, f"localhost:{port}")
    with pytest.raises(SourceError, match="private") as caught:
        inside.resolve("v1", ACCEPT)
    assert caught.value.status is None
    with pytest.raises(SourceError):
        source_of(inside).open()
    monkeypatch.setenv("SHMSTREAM_PRIVATE_REDIRECTS", "1")
    fresh = chosen(folder, Upstream("*", "http://{namespace}"))
    allowed = repository(fresh, f"127.0.0.1:{port}")
    assert allowed.resolve("v1", ACCEPT).digest == IMAGE.digest
    for number in range(300):
        assert fresh.get(f"r{number}.example") is not None
    assert len(list(fresh)) <= 256, "clients may name any number"


def test_no_pattern_leads_to_a_server_that_has_settings_of_its_own(folder: str) -> None:
    upstreams = chosen(
        folder,
        Upstream("*", "https://{namespace}"),
        Upstream("ghcr.io", "https://ghcr.io", allow=("me",)),
        Upstream("docker.io", "https://registry-1.docker.io", allow=("me",)),
        Upstream("ours", "https://a.example:5000", ("https://b.example",), allow=("me",)),
        tokens="/tokens",
    )
    for namespace, name in [
        *((f"ghcr.io{port}", "ghcr.io") for port in ("", ":443", ":0443", ":00443")),
        *((each, "docker.io") for each in ("registry-1.docker.io", "index.docker.io:0443")),
        ("a.example:5000", "ours"), ("a.example:05000", "ours"), ("b.example:443", "ours"),
    ]:  # fmt: skip
        assert upstreams.get(namespace) is upstreams.get(name), namespace
    for namespace in ("a.example", "b.example:5000", "ghcr.io:444"):
        other = upstreams.get(namespace)
        assert other is not None
        assert other.allow is None
    for bad in ("c.example:0", "c.example:99999", "c.example:"):
        assert upstreams.get(bad) is None
    plainly = chosen(
        folder, Upstream("*", "http://{namespace}"), Upstream(None, "https://c.example")
    )
    assert plainly.get("c.example:443") is plainly.get(None)
    assert plainly.get("c.example") is plainly.get(None)


def test_a_client_names_no_variable_of_another_host(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSTREAM_AUTH_A_B_EXAMPLE", "me:secret")
    upstreams = chosen(folder, Upstream("*", "https://{namespace}"))
    found = {each: upstreams.get(each) for each in ("a.b.example", "a-b.example")}
    told = {name: each is not None and each._find("x") is not None for name, each in found.items()}
    assert told == {"a.b.example": True, "a-b.example": False}


def test_which_patterns_are_guarded() -> None:
    for namespace, url, is_open in [
        ("*", "https://{namespace}", True), ("*.example", "https://{namespace}:5000/v2/x", True),
        ("*", "https://proxy.example/v2/{namespace}", False), ("*", "https://a.example", False),
    ]:  # fmt: skip
        assert Upstream(namespace, url).is_open is is_open, url
    for url in (
        "https://me:secret@[bad",
        "https://me:se/cret@a.example",
        "https://a/x?me:secret@b",
    ):
        with pytest.raises(BadSetting) as caught:
            Upstream(None, url)
        assert "cret" not in str(caught.value)
        with pytest.raises(ValueError, match="do not belong here"):
            Mirror("/a", "http", url)


def test_an_anonymous_upstream(
    folder: str, quirks: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSTREAM_AUTH_A_IO", "me:secret")
    quirks.script = lambda _: Reply(401, {"WWW-Authenticate": "Basic realm=x"})
    for anonymous in (False, True):
        told = Upstream("a.io", quirks.url, anonymous=anonymous)
        quirks.asked.clear()
        with pytest.raises(SourceError) as caught:
            repository(chosen(folder, told), "a.io").tags({})
        assert caught.value.status == 401
        assert any(each.authorization for each in quirks.asked) is not anonymous


def test_credentials_of_the_environment_are_for_the_first_url(
    folder: str, quirks: Quirks, second: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMSTREAM_AUTH_A_IO", "me:secret")
    for each in (quirks, second):
        each.script = lambda _: Reply(401, {"WWW-Authenticate": "Basic realm=x"})
    found = repository(chosen(folder, Upstream("a.io", quirks.url, (second.url,))), "a.io")
    with pytest.raises(SourceError):
        found.tags({})
    assert any(each.authorization for each in quirks.asked)
    assert not any(each.authorization for each in second.asked)


def test_a_limit_of_downloads(folder: str, quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is done, or fails, or is closed twice, makes room for one."""
    quirks.script = plain(IMAGE)
    found = repository(chosen(folder, Upstream(None, quirks.url, max_downloads=1)))
    hasty = replace(found.upstream.bounds, first_byte=0.1)

    def check_that_all_are_taken() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(found.upstream, "bounds", hasty)
            with pytest.raises(SourceError, match="all 1 places for downloads from it") as caught:
                source_of(found).open()
        assert caught.value.retryable

    feed = source_of(found).open()
    check_that_all_are_taken()
    feed.close()
    feed.close()
    with pytest.raises(SourceError):
        source_of(found, digest_of(b"nothing")).open()
    first = source_of(found).open()
    check_that_all_are_taken()
    waiting = repository(chosen(folder, Upstream(None, quirks.url, max_downloads=1)))
    first.close()
    held = source_of(waiting).open()
    threading.Timer(0.05, held.close).start()
    assert digest_of(pulled(source_of(waiting))) == LAYER, "it waits for its place"


# TLS.


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)


KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate of it for localhost, and one for a client."""
    folder = tmp_path_factory.mktemp("papers")
    openssl("req", "-x509", *KEY, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem",
            folder=folder)  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *KEY[:-2], "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", folder=folder)  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days",
                "2", "-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem",
                folder=folder)  # fmt: skip
    return folder


@pytest.fixture
def demanding(papers: Path, direct: None) -> Iterator[Quirks]:  # noqa: ARG001
    """Wants to see a certificate of its authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers / "server.pem", papers / "server.key")
    context.load_verify_locations(papers / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with another(context) as server:
        server.script = plain(IMAGE)
        yield server


def test_certificates(folder: str, papers: Path, demanding: Quirks) -> None:
    files = {name: str(papers / name) for name in ("ca.pem", "client.pem", "client.key")}
    own = {"certfile": files["client.pem"], "keyfile": files["client.key"]}
    good: list[dict[str, Any]] = [{"cafile": files["ca.pem"], **own}, {"insecure": True, **own}]
    for given in good:
        told = Upstream(None, demanding.url, **given)
        check(Settings((told,), folder))
        found = repository(chosen(folder, told))
        assert found.resolve("v1", ACCEPT).digest == IMAGE.digest
        assert digest_of(pulled(source_of(found))) == LAYER
    bad: list[dict[str, Any]] = [{}, own, {"cafile": files["ca.pem"]}, {"insecure": True}]
    for given in bad:
        found = repository(chosen(folder, Upstream(None, demanding.url, **given), question=5.0))
        with pytest.raises(SourceError):
            found.resolve("v1", ACCEPT)


def test_a_certificate_is_shown_to_its_upstream_alone(
    folder: str, papers: Path, demanding: Quirks, quirks: Quirks
) -> None:
    """A redirect leads to another server, which would take it; it trusts the same authority."""
    quirks.script = lambda asked: Reply(307, {"Location": f"{demanding.url}{asked.path}"})
    told = Upstream(
        None, quirks.url, cafile=str(papers / "ca.pem"), certfile=str(papers / "client.pem"),
        keyfile=str(papers / "client.key"),
    )  # fmt: skip
    with pytest.raises(SourceError):
        source_of(repository(chosen(folder, told))).open()
    assert demanding.asked == []


def test_files_that_cannot_be_used(folder: str, papers: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    given: list[dict[str, Any]] = [
        {"cafile": str(tmp_path / "text")},
        {"cafile": str(tmp_path / "missing")},
        {"certfile": str(papers / "client.pem"), "keyfile": str(papers / "server.key")},
        {"docker_config": str(tmp_path / "text")},
    ]
    for each in given:
        settings = Settings(
            (Upstream(None, "https://a"), Upstream("b", "https://b", **each)), folder
        )
        with pytest.raises(BadSetting, match="upstream 2"):
            check(settings)
