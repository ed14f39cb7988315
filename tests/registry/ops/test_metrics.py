"""Any worker tells the metrics of all workers."""

from __future__ import annotations

import re
from contextlib import closing
from http.client import IncompleteRead
from pathlib import Path

import pytest

from shmstream import Store
from shmstream.registry.ops.metrics import METRICS
from tests.support.crowds import BLOB, DATA, KEY, MIB, SIZE, clients_of, finish
from tests.support.interpreters import wait_until
from tests.support.mirrors import Mirrored, tagged
from tests.support.origin import Origin
from tests.support.quirks import Asked, Quirks, Reply
from tests.support.serving import Serve
from tests.support.stores import digest


def test_metrics_of_all_workers(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, stall_after=MIB)
    serving = serve("--max-bytes", "1GiB", upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    serving.wait_for_metric(len(clients), "shmstream_clients")
    assert serving.metric("shmstream_flights") == 1
    assert serving.metric("shmstream_followers") == 1
    assert serving.metric("shmstream_upstream_bytes_total") <= MIB
    origin.release()
    assert finish(clients) == len(clients)
    serving.wait_for_metric(0, "shmstream_clients")
    wait_until(lambda: KEY in store)
    count = len(clients)
    assert serving.ask(BLOB, Range="bytes=0-99").body == DATA[:100]
    assert serving.ask("/v2/team/app/blobs/sha256:" + "0" * 64).status == 404
    served = count * SIZE + 100
    serving.wait_for_metric(count + 2, "shmstream_requests_total", route="blob")
    for name, labels, value in [
        ("shmstream_requests_total", {"cache": "miss", "status": "200"}, 1),
        ("shmstream_requests_total", {"cache": "flight", "status": "200"}, count - 1),
        ("shmstream_requests_total", {"cache": "hit", "status": "206"}, 1),
        ("shmstream_requests_total", {"route": "blob", "status": "404"}, 1),
        ("shmstream_upstream_bytes_total", {}, SIZE),
        ("shmstream_commits_total", {}, 1),
        ("shmstream_flights", {}, 0),
        ("shmstream_ttfb_seconds_count", {"route": "blob"}, count + 2),
        ("shmstream_workers", {}, 2),
        ("shmstream_store_limit_bytes", {}, 1 << 30),
    ]:
        serving.wait_for_metric(value, name, **labels)
    assert serving.metric("shmstream_served_bytes_total", route="blob") >= served
    saved = serving.metric("shmstream_saved_bytes")
    assert saved == serving.metric("shmstream_served_bytes_total", route="blob") - SIZE
    text = serving.ask("/metrics").body.decode()
    assert re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M) == [
        (each.name, each.kind) for each in METRICS
    ]
    openmetrics = serving.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


def test_labels_are_bounded_and_half_made_files_no_trouble(serve: Serve) -> None:
    serving = serve("--workers", "1", "--no-access-log")
    for method in ("BREW", "GET", "PROPFIND"):
        serving.ask("/" + method * 3, method)
    [folder] = serving.temporary.iterdir()
    (folder / "counter_1.db").touch()
    text = serving.ask("/metrics").body.decode()
    found = re.findall(r'shmstream_requests_total{cache="",method="(.*?)",route="(.*?)"', text)
    assert set(found) == {("GET", "other"), ("other", "other")}


def test_whatever_a_client_accepts_the_metrics_are_told(serve: Serve) -> None:
    """A version may be quoted, or no number at all."""
    serving = serve("--workers", "1", "--no-access-log")
    for version in ('"1.0.0"', "x", "1.0.x", "", "9" * 5000, "1" + ".0" * 1000, "\xff"):
        for kind in ("application/openmetrics-text", "text/plain"):
            answer = serving.ask("/metrics", Accept=f"{kind}; version={version}, */*")
            assert (answer.status, b"shmstream_flights" in answer.body) == (200, True), version
    assert "Traceback" not in serving.log


def test_a_digest_that_there_is_not_is_no_news(serve: Serve, origin: Origin, upstream: str) -> None:
    """Clients ask for what there is not; that is no abort, and no warning."""
    serving = serve("--workers", "1", upstream=upstream)
    for number, status in enumerate((404, 403, 401, 400)):
        path = f"/v2/team/app/blobs/sha256:{number:064d}"
        origin.serve(path, status=status)
        assert serving.ask(path).status == status
    serving.wait_for_metric(4, "shmstream_refusals_total")
    assert serving.metric("shmstream_flights_led_total") == 4
    assert serving.metric("shmstream_aborts_total") == 0
    assert "WARNING" not in serving.log


def test_aborts_and_evictions(serve: Serve, origin: Origin, upstream: str) -> None:
    wrong = f"/v2/team/app/blobs/{digest(2, SIZE)}"
    origin.serve(wrong, seed=2, size=SIZE, wrong_at=5)
    serving = serve("--max-bytes", str(SIZE + MIB), upstream=upstream)
    connection, response = serving.open(wrong)
    with pytest.raises(IncompleteRead):
        response.read()
    connection.close()
    serving.wait_for_metric(1, "shmstream_aborts_total")
    origin.change(wrong, wrong_at=None)
    assert serving.ask(wrong).status == 200
    assert serving.ask(BLOB).body == DATA
    serving.wait_for_metric(1, "shmstream_evictions_total")
    serving.wait_for_metric(SIZE, "shmstream_evicted_bytes_total")
    lines = serving.accesses(lambda lines: any(not each["complete"] for each in lines))
    [cut] = [each for each in lines if not each["complete"]]
    assert cut["status"] == 200
    assert cut["bytes"] < SIZE
    assert "was cut: " in serving.log


def test_mirrors_are_told_apart(
    quirks: Quirks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its path; the bytes of answers that are not kept are no saved bytes."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.setenv(f"{scheme}_proxy", "")
    body = DATA[:200_000]

    def script(asked: Asked) -> Reply:
        status = {"/b/none": 404, "/b/away": 503}.get(asked.path, 200)
        if status != 200:
            return Reply(status)
        return tagged(
            body, '"1"', Cache_Control="max-age=60" if "/a/" in asked.path else "no-store"
        )(asked)

    quirks.script = script
    tables: list[dict[str, object]] = [
        {"path": f"/{name}", "kind": "http", "url": f"{quirks.url}/{name}"} for name in "ab"
    ]
    with closing(Mirrored(tmp_path, *tables, workers=2)) as mirrored:
        for path in ("/a/kept", "/a/kept", "/b/not-kept", "/b/not-kept", "/b/not-kept"):
            assert mirrored.ask(path).body == body
        assert [mirrored.ask(path).status for path in ("/b/none", "/b/away")] == [404, 503]
        wait, size = mirrored.serving.wait_for_metric, len(body)
        wait(7, "shmstream_requests_total", route="http")
        for name, labels, value in [
            ("shmstream_requests_total", {"upstream": "/a", "cache": "miss"}, 1),
            ("shmstream_requests_total", {"upstream": "/a", "cache": "hit"}, 1),
            ("shmstream_requests_total", {"upstream": "/b", "status": "200"}, 3),
            ("shmstream_requests_total", {"upstream": "/b", "status": "503"}, 1),
            ("shmstream_served_bytes_total", {"upstream": "/a"}, 2 * size),
            ("shmstream_upstream_bytes_total", {"upstream": "/a"}, size),
            ("shmstream_upstream_bytes_total", {"upstream": "/b"}, 3 * size),
            ("shmstream_upstream_bytes_total", {"upstream": ""}, 0),
            ("shmstream_saved_bytes", {}, size),
            ("shmstream_upstream_requests_total", {"upstream": "/a", "outcome": "answered"}, 1),
            ("shmstream_upstream_requests_total", {"upstream": "/b", "outcome": "answered"}, 3),
            ("shmstream_upstream_requests_total", {"upstream": "/b", "outcome": "refused"}, 1),
            ("shmstream_upstream_requests_total", {"upstream": "/b", "outcome": "failed"}, 1),
            ("shmstream_upstream_up", {"upstream": "/a"}, 1),
            ("shmstream_upstream_up", {"upstream": "/b"}, 0),
        ]:
            wait(value, name, **labels)
