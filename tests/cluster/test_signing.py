"""Requests of peers: what is unsigned, old, foreign or seen before is refused, and in the log."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmstream import Cluster, Store
from shmstream.cluster.peer import Asker, NoPeer, Trouble
from shmstream.cluster.signing import Guard, sign
from tests.support.cluster import SECRET, Nodes, Reading
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 200_000
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
PATH = f"/blobs/{KEY}"
ME = "127.0.0.1:1"


def signed(to: str, secret: str = SECRET, method: str = "GET", path: str = PATH) -> dict[str, str]:
    return sign(secret.encode(), method, path, ME, to, {"range": "bytes=10-"})


def get(address: str, headers: dict[str, str], path: str = PATH) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def holder(nodes: Nodes) -> tuple[Store, str]:
    """A node that has the blob, and its address."""
    address = nodes.ports.take()
    store = nodes.store(address)
    store.fetch(KEY, [DATA])
    return store, address


def test_a_signed_request_is_answered(holder: tuple[Store, str]) -> None:
    assert get(holder[1], signed(holder[1])) == (206, DATA[10:])


BAD: dict[str, tuple[Callable[[dict[str, str], str], dict[str, str]], str]] = {
    "unsigned": (lambda _good, _to: {}, "not signed"),
    "another secret": (lambda _good, to: signed(to, "another, which is as long"), "another secret"),
    "for another node": (lambda _good, _to: signed("127.0.0.1:2"), "meant for"),
    "another range": (lambda good, _to: {**good, "range": "bytes=0-"}, "another secret"),
    "another method": (lambda _good, to: signed(to, method="HEAD"), "another secret"),
    "another blob": (lambda _good, to: signed(to, path=PATH + "0"), "another secret"),
    "another node asks": (lambda good, _to: {**good, "shmstream-peer": "x:1"}, "another secret"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_refused_and_logged(
    what: str, holder: tuple[Store, str], caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = BAD[what]
    assert get(holder[1], change(signed(holder[1]), holder[1])) == (403, b"")
    assert reason in caplog.text
    assert KEY[:20] in caplog.text


@pytest.mark.parametrize(("when", "reason"), [(-61.0, " s old"), (120.0, "too early")])
def test_an_old_request_is_refused(
    when: float,
    reason: str,
    holder: tuple[Store, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    with monkeypatch.context() as changed:
        changed.setattr(time, "time", lambda: now + when)
        headers = signed(holder[1])
    assert get(holder[1], headers)[0] == 403
    assert reason in caplog.text


def test_a_replayed_request_is_refused(
    holder: tuple[Store, str], caplog: pytest.LogCaptureFixture
) -> None:
    headers = signed(holder[1])
    assert [get(holder[1], headers)[0] for _ in range(3)] == [206, 403, 403]
    assert "seen before" in caplog.text


def test_a_request_that_another_process_of_the_node_has_seen_is_refused(tmp_path: Path) -> None:
    one, other = (Guard(SECRET.encode(), ME, str(tmp_path)) for _ in range(2))
    headers = signed(ME)
    assert one.objection("GET", PATH, headers) is None
    assert other.objection("GET", PATH, headers) == "it was seen before"


def test_what_was_seen_is_forgotten_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(SECRET.encode(), ME, str(tmp_path))
    assert guard.objection("GET", PATH, signed(ME)) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600)
    assert guard.objection("GET", PATH, signed(ME)) is None
    assert len(list(tmp_path.rglob("[0-9a-f]*[0-9a-f]"))) >= 1
    assert len([each for each in tmp_path.rglob("*") if each.is_file()]) == 1


def test_what_was_seen_is_known_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cluster").write_text("no folder")
    guard, headers = Guard(SECRET.encode(), ME, str(tmp_path)), signed(ME)
    assert guard.objection("GET", PATH, headers) is None
    assert guard.objection("GET", PATH, headers) == "it was seen before"


@pytest.mark.parametrize(
    ("path", "headers"), [("/", {}), ("/blobs/../x", {}), (PATH, {"x": "y" * 9000})]
)
def test_what_is_no_request_for_a_blob(
    holder: tuple[Store, str], path: str, headers: dict[str, str]
) -> None:
    try:
        assert get(holder[1], headers, path)[0] == 400
    except (ConnectionError, http.client.HTTPException):
        pass  # cut before it was read


def test_a_name_is_not_given(holder: tuple[Store, str]) -> None:
    store, address = holder
    store.fetch("a-name", [DATA])
    for path in ("/blobs/a-name", f"/blobs/sha256:{'0' * 64}"):
        assert get(address, signed(address, path=path), path)[0] in (400, 404)


def test_nodes_with_different_secrets_do_not_help_each_other(
    nodes: Nodes, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    first, stranger = nodes.store(), nodes.store(secret="another, which is as long")
    first.fetch(KEY, origin.url("/blob"))
    nodes.settle(first)
    reading = Reading(stranger, KEY, origin.url("/blob"))
    assert reading.is_right(KEY)
    assert "another secret" in caplog.text
    assert "it refuses us" in caplog.text


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate for 127.0.0.1 that it has signed; and those of others."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ours", "others"):
        subject = ("-subj", f"/CN={name}", "-days", "2", "-nodes")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", *subject)
        openssl(
            *("req", "-x509", *key, "-keyout", f"{name}-node.key", "-out", f"{name}-node.pem"),
            *("-CA", f"{name}.pem", "-CAkey", f"{name}.key", "-subj", "/CN=node", "-days", "2"),
            *("-nodes", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
    return folder


def of(folder: Path, name: str) -> dict[str, Any]:
    return {
        "certfile": str(folder / f"{name}-node.pem"),
        "keyfile": str(folder / f"{name}-node.key"),
        "cafile": str(folder / f"{name}.pem"),
    }


def test_nodes_talk_tls(nodes: Nodes, origin: Origin, certificates: Path) -> None:
    origin.serve("/blob", seed=1, size=SIZE)
    stores = [nodes.store(**of(certificates, "ours")) for _ in range(2)]
    for each in stores:
        assert Reading(each, KEY, origin.url("/blob")).is_right(KEY)
        nodes.settle(each)
    assert len(origin.requests("/blob")) == 1


def test_a_node_without_our_certificate_gets_nothing(
    nodes: Nodes, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = nodes.ports.take()
    nodes.store(address, **of(certificates, "ours")).fetch(KEY, [DATA])
    other = Cluster("redis://x", secret=SECRET, **of(certificates, "others")).contexts()
    ours = Cluster("redis://x", secret=SECRET, **of(certificates, "ours")).contexts()
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(certificates / "ours.pem")
    assert other is not None
    assert ours is not None
    troubles = []
    for number, context in enumerate((other[1], anonymous, None), 1):
        with pytest.raises(NoPeer) as refused:
            Asker(ME, SECRET.encode(), context).ask(address, KEY, 0)
        troubles.append(refused.value.trouble)
        wait_until(lambda n=number: caplog.text.count("TLS with it fails") == n)  # type: ignore[misc]
    assert troubles[0] is Trouble.UNTRUSTED
    assert troubles[1] in (Trouble.UNTRUSTED, Trouble.SILENT)  # it may see the end of it only
    assert troubles[2] in (Trouble.SILENT, Trouble.DEAD)
    with Asker(ME, SECRET.encode(), ours[1]).ask(address, KEY, 0) as feed:
        assert b"".join(bytes(each) for each in feed) == DATA


# What a user says.


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://x"},
        {"secret": "short"},
        {"advertise": "no port"},
        {"advertise": "host:0"},
        {"advertise": "host:70000"},
        {"listen": ":1"},
        {"fan": 0},
        {"max_peers": 0},
        {"lease": 0.1},
        {"certfile": "x"},
        {"cafile": "x"},
    ],
)
def test_a_cluster_that_is_not_valid(wrong: dict[str, object]) -> None:
    good = {"url": "redis://x", "secret": SECRET}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cluster(**{**good, **wrong})  # type: ignore[arg-type]


def test_a_cluster_shows_no_secret() -> None:
    cluster = Cluster("redis://user:password@x", secret=SECRET, advertise="[::1]:5001")
    assert repr(cluster) == "<Cluster redis://x as [::1]:5001>"
    assert cluster.address == ("::1", 5001)
