"""What operators see of `shmstream serve`: metrics over all workers, health, events; and that a
worker that ends leaves its flights to the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from itertools import pairwise
from typing import Any

import psutil
import pytest

from shmstream import Store
from shmstream.registry.ops.access_log import Entry
from shmstream.registry.ops.metrics import METRICS
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.serving import Serve, Serving
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 3 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
BLOB = f"/v2/team/app/blobs/{KEY}"

Client = tuple[HTTPConnection, HTTPResponse]


@pytest.fixture
def upstream(origin: Origin) -> str:
    """Has one blob."""
    origin.serve(BLOB, seed=1, size=SIZE)
    return origin.url("").rstrip("/")


def clients_of(workers: set[int], serving: Serving, store: Store, starts: int = 2) -> list[Client]:
    """Clients of a flight, so many that each worker has one: the kernel chooses who gets which.

    First, so many workers must have begun to serve.
    """
    wait_until(lambda: serving.metric("shmstream_worker_starts_total") == starts)
    clients: list[Client] = []
    while not workers <= users(store):
        assert len(clients) < 500, "only one of the workers is given connections"
        clients.append(serving.open(BLOB))
    return clients


def finish(clients: list[Client]) -> int:
    """Read them to their ends; how many got all of it."""
    good = 0
    for connection, response in clients:
        try:
            good += sha256(response.read()) == sha256(DATA)
        except (IncompleteRead, ConnectionError):
            pass
        connection.close()
    return good


def users(store: Store) -> set[int]:
    """The processes that lead flights or follow them."""
    found = set()
    for flight in store.flights():
        leader = () if flight.leader is None else (flight.leader,)
        found |= {each.pid for each in (*leader, *(each.identity for each in flight.followers))}
    return found


def leader(store: Store) -> int:
    [flight] = store.flights()
    assert flight.leader is not None
    return flight.leader.pid


# A worker ends.


def test_a_worker_that_is_replaced_hands_over(serve: Serve, origin: Origin, upstream: str) -> None:
    """At SIGHUP all of them are: clients have `grace` to finish, and flights go on elsewhere."""
    origin.change(BLOB, first=0, count=1, stall_after=MIB)
    serving = serve("--grace", "1s", upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    before = set(serving.workers())
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(set(serving.workers()) - before) == 2)
    new = set(serving.workers()) - before
    later = clients_of(new, serving, store, starts=4)  # who follow one of the old
    wait_until(lambda: not before & set(serving.workers()))  # the grace of a second is over
    assert finish(later) >= 2, "one of each"
    assert finish(clients) < len(clients), "the leader's own were cut after the grace"
    first, second, *others = origin.requests(BLOB)
    assert (first.status, second.status) == (200, 206)
    assert second.range == f"bytes={MIB}-"
    takeovers = serving.metric("shmstream_takeovers_total")
    # Perhaps the other old one was faster, and handed over as well, before it had asked or after.
    assert 1 + len(others) <= takeovers <= 2
    assert serving.metric("shmstream_handovers_total") >= 1
    assert " ERROR " not in serving.log


def test_the_worker_that_leads_is_killed(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, first=0, count=1, stall_after=MIB)
    serving = serve(upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    os.kill(leader(store), signal.SIGKILL)
    finished = finish(clients)
    assert 0 < finished < len(clients)
    assert [each.status for each in origin.requests(BLOB)] == [200, 206]
    wait_until(lambda: len(serving.workers()) == 2)
    wait_until(lambda: serving.metric("shmstream_clients") == 0)
    assert serving.metric("shmstream_takeovers_total") == 1
    assert serving.ask(BLOB).body == DATA


def test_stopping_all_leaves_what_can_be_resumed(
    serve: Serve, origin: Origin, upstream: str
) -> None:
    origin.change(BLOB, stall_after=MIB)
    serving = serve(upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    wait_until(lambda: store.flights()[0].published == MIB)
    assert serving.stop() == 0
    assert finish(clients) == 0
    assert store.flights() == []
    assert store.check() == []
    origin.change(BLOB, stall_after=None)
    again = serve(upstream=upstream)
    assert again.ask(BLOB).body == DATA
    assert origin.requests(BLOB)[-1].status == 206
    assert again.metric("shmstream_resumes_total") == 1


def test_a_second_signal_waits_for_nobody(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, stall_after=MIB)
    serving = serve("--grace", "1h", "--workers", "1", upstream=upstream)
    connection, response = serving.open(BLOB)
    assert response.read(1000) == DATA[:1000]
    serving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(serving))
    serving.process.send_signal(signal.SIGTERM)
    assert serving.finish() == 0
    with pytest.raises((IncompleteRead, ConnectionError)):
        response.read()
    connection.close()
    assert Store(serving.store).gc(partial_age=0), "what could be resumed"


def accepts(serving: Serving) -> bool:
    """Whether a worker takes connections; the parent's socket alone answers nobody."""
    return bool(psutil.Process(serving.workers()[0]).net_connections("tcp")[0].status == "LISTEN")


# Metrics.


def test_metrics_of_all_workers(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, stall_after=MIB)
    serving = serve("--max-bytes", "1GiB", upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    wait_until(lambda: serving.metric("shmstream_clients") == len(clients))
    assert serving.metric("shmstream_flights") == 1
    assert serving.metric("shmstream_followers") == 1
    assert serving.metric("shmstream_upstream_bytes_total") <= MIB
    origin.release()
    assert finish(clients) == len(clients)
    wait_until(lambda: serving.metric("shmstream_clients") == 0)
    wait_until(lambda: KEY in store)
    count = len(clients)
    assert serving.ask(BLOB, Range="bytes=0-99").body == DATA[:100]
    assert serving.ask("/v2/team/app/blobs/sha256:" + "0" * 64).status == 404
    served = count * SIZE + 100
    wait_until(lambda: serving.metric("shmstream_requests_total", route="blob") == count + 2)
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
        assert serving.metric(name, **labels) == value, (name, labels)
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
    assert set(found) <= {("GET", "other"), ("other", "other")}


def test_aborts_and_evictions(serve: Serve, origin: Origin, upstream: str) -> None:
    wrong = f"/v2/team/app/blobs/{digest(2, SIZE)}"
    origin.serve(wrong, seed=2, size=SIZE, wrong_at=5)
    serving = serve("--max-bytes", str(SIZE + MIB), upstream=upstream)
    connection, response = serving.open(wrong)
    with pytest.raises(IncompleteRead):
        response.read()
    connection.close()
    wait_until(lambda: serving.metric("shmstream_aborts_total") == 1)
    origin.change(wrong, wrong_at=None)
    assert serving.ask(wrong).status == 200
    assert serving.ask(BLOB).body == DATA
    wait_until(lambda: serving.metric("shmstream_evictions_total") == 1)
    assert serving.metric("shmstream_evicted_bytes_total") == SIZE
    wait_until(lambda: any(not each["complete"] for each in serving.accesses()))
    [cut] = [each for each in serving.accesses() if not each["complete"]]
    assert cut["status"] == 200
    assert cut["bytes"] < SIZE
    assert "was cut: " in serving.log


# Health.


def test_readiness(serve: Serve) -> None:
    serving = serve("--workers", "1", "--no-access-log")
    ready = serving.ask("/readyz")
    assert (ready.status, json.loads(ready.body)["ready"]) == (200, True)
    shutil.move(serving.store, serving.folder / "elsewhere")
    unready = serving.ask("/readyz")
    assert unready.status == 503
    assert json.loads(unready.body)["problems"] == [f"the store is gone: {serving.store}"]
    assert serving.ask("/healthz").status == 200
    shutil.move(serving.folder / "elsewhere", serving.store)
    assert serving.ask("/readyz").status == 200
    assert serving.ask("/readyz", "POST").status == 405
    assert serving.ask("/nothing").status == 404


def test_problems_of_the_upstream_are_told(serve: Serve, origin: Origin, upstream: str) -> None:
    serving = serve("--workers", "1", upstream=upstream)
    assert json.loads(serving.ask("/readyz").body)["upstreams"] == []
    origin.refuse()
    assert serving.ask("/v2/team/app/manifests/v1").status >= 500
    ready = serving.ask("/readyz")
    assert ready.status == 200, "what is here can be served"
    [problem] = json.loads(ready.body)["upstreams"]
    assert problem.startswith(f"{upstream}: ")
    assert "refused" in problem
    events = Events(serving)
    assert events.next()["problems"] == [problem]
    events.close()
    origin.accept()
    assert serving.ask("/v2/team/app/manifests/v1").status == 404
    assert json.loads(serving.ask("/readyz").body)["upstreams"] == [], "it answers"


# Events.


class Events:
    """Server-sent events of a connection."""

    def __init__(self, serving: Serving) -> None:
        self.connection, self.response = serving.open("/events")
        self.worker = None

    def next(self) -> dict[str, Any]:
        """The next snapshot."""
        while not (line := self.response.readline()).startswith(b"data: "):
            assert line, "the events have ended"
        snapshot: dict[str, Any] = json.loads(line[6:])
        return snapshot

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_events(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, rate=MIB * 3 // 2)
    serving = serve(upstream=upstream)
    events = Events(serving)
    assert events.response.getheader("content-type") == "text/event-stream"
    before = events.next()
    assert (before["flights"], before["recent"]) == ([], [])
    assert before["upstreams"] == [{"namespace": None, "url": upstream}]
    clients = clients_of(set(serving.workers()), serving, Store(serving.store))
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["flights"]:
        seen += [snapshot for snapshot in [events.next()] if seen or snapshot["flights"]]
    events.close()
    assert finish(clients) == len(clients)
    flying = [snapshot["flights"][0] for snapshot in seen if snapshot["flights"]]
    published = [each["published"] for each in flying]
    assert published == sorted(set(published))
    assert {(each["key"], each["size"]) for each in flying} == {(KEY, SIZE)}
    assert all(each["leader"] in serving.workers() for each in flying[1:-1])
    assert any(MIB / 2 < (each["rate"] or 0) < 3 * MIB for each in flying)
    assert all(one["time"] < two["time"] for one, two in pairwise(seen))


def test_viewers_share_a_snapshot_and_are_bounded(serve: Serve) -> None:
    serving = serve("--workers", "1")
    viewers = [Events(serving) for _ in range(64)]
    assert serving.ask("/events").status == 503
    seen: list[set[float]] = [set() for _ in viewers]
    while not set.intersection(*seen):  # until there is one that all of them got
        for viewer, times in zip(viewers, seen, strict=True):
            times.add(viewer.next()["time"])
            assert len(times) < 20
    for viewer in viewers:
        viewer.close()
    wait_until(lambda: serving.ask("/events", "HEAD").status == 200)


def test_the_page_lets_nothing_else_in(serve: Serve) -> None:
    serving = serve("--workers", "1")
    page = serving.ask("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    text = page.body.decode()
    assert "innerHTML" not in text
    outside = set(re.findall(r"https?://[\w./]+", text))
    assert outside == {"http://www.w3.org/2000/svg"}, "a name, not a place"
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", text)


# The access log's lines.


def test_no_line_is_longer_than_a_pipe_takes_at_once() -> None:
    odd = "\x00\xff\U0001f600" * 2000
    entry = Entry(
        ended=time.time(), client="::1", method="GET", path=odd, namespace=odd, wanted_range=odd,
        user_agent=odd, status=200, sent=1 << 40, complete=False, duration=1e6, ttfb=1e6,
        route="blob", cache="flight",
    )  # fmt: skip
    line = entry.line(lost=10**9)
    assert len(line) <= 4096
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["path"] == odd[:64]
