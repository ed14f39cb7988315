"""Metrics for Prometheus: any worker tells the sums over all workers.

Each worker counts into memory-mapped files of its own, in a folder. A worker that is asked reads
the files of all workers (prometheus-client's multiprocess mode). The names of the files contain the
worker's number and not its process id, so a new worker continues the counts of the dead one.
Flights, followers and the store are not counted but looked at, when a client asks.

Without PROMETHEUS_MULTIPROC_DIR a process counts for itself alone.

If the disk is full, to count in a page that has no space there yet kills the process with SIGBUS.
So a worker takes the space for its files before it counts. If there is none, it counts for itself
alone, too.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from shmstream.errors import SourceError
from shmstream.events import Event, EventKind
from shmstream.mirror.settings import KINDS
from shmstream.upstreams.counts import Counts

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Holds the folder. Without `NUMBER_VARIABLE`, set it before this module is imported."""
NUMBER_VARIABLE = "SHMSTREAM_WORKER"
"""Holds the number of this worker: a small number, used by one process at a time."""

_SPACE = {"counter": 1 << 20, "histogram": 1 << 18, "gauge_livesum": 1 << 16}
"""The files of a worker, and the bytes that are taken for each: more than it will need."""

_log = logging.getLogger("shmstream")


def _count_alone(folder: str, error: OSError) -> None:
    _log.error("this worker counts for itself alone: %s: %s", error.strerror, folder)
    values.ValueClass = values.MutexValue


def _shared_folder() -> str | None:
    """The folder of the counts of all workers; None if this process counts for itself alone."""
    folder, number = os.environ.get(FOLDER_VARIABLE), os.environ.get(NUMBER_VARIABLE)
    if folder is None or number is None:
        return folder
    try:
        for kind, size in _SPACE.items():
            path = os.path.join(folder, f"{kind}_{number}.db")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
    except OSError as error:
        _count_alone(folder, error)
        return None
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    return folder


@dataclass(frozen=True)
class Described:
    """A metric: its kind, its labels, and its help text."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_PAUSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TTFB_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

METRICS = (
    Described(
        "shmstream_build_info", "gauge", ("version", "python"), "1; the versions that run here"
    ),
    Described(
        "shmstream_requests_total", "counter", ("route", "upstream", "method", "status", "cache"),
        "Responses that ended. cache: hit (complete), flight (joined), miss (began), stale",
    ),
    Described(
        "shmstream_ttfb_seconds", "histogram", ("route",),
        "Of /v2/, mirrors: from the request to the first byte of the body, or the end without one",
    ),
    Described(
        "shmstream_served_bytes_total", "counter", ("route", "upstream"), "Bytes of bodies sent"
    ),
    Described(
        "shmstream_clients", "gauge", (), "Requests to the registry that are being answered now"
    ),
    Described(
        "shmstream_upstream_bytes_total", "counter", ("upstream",),
        "Bytes of blobs that came from upstreams; and of all that mirrors got",
    ),
    Described(
        "shmstream_upstream_requests_total", "counter", ("upstream", "outcome"),
        "Questions and downloads. outcome: answered, refused (such as 404), failed (no answer, 429,"
        " 5xx)",
    ),
    Described(
        "shmstream_upstream_up", "gauge", ("upstream",),
        "0 while the last question to it has failed, as /readyz tells; else 1",
    ),
    Described(
        "shmstream_upstream_pulls_left", "gauge", ("upstream",),
        "Manifests that it still gives to this cache, as it told last (ratelimit-remaining)",
    ),
    Described(
        "shmstream_upstream_pulls_limit", "gauge", ("upstream",),
        "Manifests that it gives in a time, likewise (ratelimit-limit)",
    ),
    Described(
        "shmstream_retries_total", "counter", ("reason",),
        "Times a source was asked again. reason: the status of its answer, or how it failed",
    ),
    Described(
        "shmstream_peer_bytes_total", "counter", (),
        "Bytes of blobs that came from other nodes of the cluster",
    ),
    Described(
        "shmstream_given_bytes_total", "counter", (),
        "Bytes of blobs that went to other nodes of the cluster",
    ),
    Described(
        "shmstream_flights_from_peers", "gauge", (),
        "Flights of this node whose bytes come from another node just now",
    ),
    Described(
        "shmstream_children", "gauge", (), "Times that this node gives a blob to another one now"
    ),
    Described(
        "shmstream_directory_calls_total", "counter", (),
        "Calls of the directory of the cluster, also those that it did not answer",
    ),
    Described(
        "shmstream_directory_failures_total", "counter", (),
        "Calls that the directory did not answer",
    ),
    Described(
        "shmstream_directory_away_seconds_total", "counter", (),
        "Seconds from a call that the directory did not answer to one that it did, of all workers",
    ),
    Described(
        "shmstream_saved_bytes", "gauge", (),
        "Bytes of blobs and manifests sent to clients, less those that came from upstreams",
    ),
    Described("shmstream_flights", "gauge", (), "Downloads in progress"),
    Described("shmstream_followers", "gauge", (), "Processes that follow a flight of another"),
    Described("shmstream_lag_bytes", "gauge", (), "How far the last of all followers is behind"),
    Described("shmstream_flights_led_total", "counter", (), "Flights that began"),
    Described(
        "shmstream_resumes_total", "counter", (), "Flights that went on with an earlier one's bytes"
    ),
    Described(
        "shmstream_takeovers_total", "counter", (), "Times a follower took over from its leader"
    ),
    Described(
        "shmstream_takeover_pause_seconds", "histogram", (),
        "At a takeover: how long no bytes had come for the readers",
    ),
    Described(
        "shmstream_handovers_total", "counter", (), "Times a leader that ended let go of its flight"
    ),
    Described(
        "shmstream_failovers_total", "counter", (), "Times a source was given up for the next one"
    ),
    Described("shmstream_commits_total", "counter", (), "Blobs that came to be complete, verified"),
    Described(
        "shmstream_aborts_total", "counter", (),
        "Flights that were given up: the source failed, the digest was wrong, no room",
    ),
    Described(
        "shmstream_refusals_total", "counter", (),
        "Flights without a byte: the upstream has no such blob, or does not give it",
    ),
    Described(
        "shmstream_passed_through_total", "counter", (),
        "Clients that were served straight from an upstream, for want of room",
    ),
    Described("shmstream_evictions_total", "counter", (), "Blobs that were removed to make room"),
    Described("shmstream_evicted_bytes_total", "counter", (), "Bytes of those blobs"),
    Described("shmstream_store_bytes", "gauge", (), "Bytes of complete blobs, at most 30 s ago"),
    Described("shmstream_store_blobs", "gauge", (), "Complete blobs, at most 30 s ago"),
    Described("shmstream_store_limit_bytes", "gauge", (), "max_bytes; 0 if there is none"),
    Described("shmstream_store_free_bytes", "gauge", (), "Room on the file system of the store"),
    Described(
        "shmstream_process_cpu_seconds_total", "counter", ("process",),
        "Processor time of the parent, and of all workers that run",
    ),
    Described(
        "shmstream_process_resident_memory_bytes", "gauge", ("process",), "Memory, likewise"
    ),
    Described("shmstream_process_open_fds", "gauge", ("process",), "Open files, likewise"),
    Described("shmstream_workers", "gauge", (), "Worker processes that are to run"),
    Described("shmstream_worker_starts_total", "counter", (), "Workers that began to serve"),
    Described(
        "shmstream_access_log_lost_total", "counter", (),
        "Lines of the access log that nobody took in time",
    ),
)  # fmt: skip
"""All metrics."""

_BYTES: Mapping[EventKind, str] = {
    EventKind.FROM_PEER: "shmstream_peer_bytes_total",
    EventKind.GIVEN: "shmstream_given_bytes_total",
}
"""For each event that only tells of bytes: their counter."""

_COUNTED: Mapping[EventKind, tuple[str, str | None]] = {
    EventKind.LED: ("shmstream_flights_led_total", None),
    EventKind.RESUMED: ("shmstream_resumes_total", None),
    EventKind.TOOK_OVER: ("shmstream_takeovers_total", None),
    EventKind.FAILED_OVER: ("shmstream_failovers_total", None),
    EventKind.COMMITTED: ("shmstream_commits_total", None),
    EventKind.ABORTED: ("shmstream_aborts_total", None),
    EventKind.REFUSED: ("shmstream_refusals_total", None),
    EventKind.HANDED_OVER: ("shmstream_handovers_total", None),
    EventKind.PASSED_THROUGH: ("shmstream_passed_through_total", None),
    EventKind.EVICTED: ("shmstream_evictions_total", "shmstream_evicted_bytes_total"),
}
"""For each event of a flight: the counter of events, and the counter of bytes, if any."""

_TIMED_ROUTES = ("base", "manifest", "blob", "tags", "referrers", *KINDS)
_ROUTES = frozenset((*_TIMED_ROUTES, "status", "events", "health", "ready", "metrics", "admin"))
_MOST_GIVERS = 4096  # keys
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_CACHES = frozenset(("hit", "flight", "miss", "stale"))
_OF_UPSTREAMS = ("blob", "manifest", *KINDS)  # routes whose bytes come from upstreams


def new_metrics() -> Metrics:
    """New metrics. Without the folder of the counts, which others may remove, for itself alone."""
    folder = _shared_folder()
    try:
        return Metrics(folder)
    except OSError as error:
        if folder is None:
            raise
        _count_alone(folder, error)
        return Metrics()


class Metrics(Counts):
    """The counters of this process, and the sums over all processes. For any thread."""

    def __init__(self, folder: str | None = None) -> None:
        self._registry = CollectorRegistry()
        self.folder: str | None = folder
        """The folder of the counts of all workers; None: this process counts for itself alone."""
        counted = {each.name: each for each in METRICS
                   if each.kind == "counter" and "process" not in each.labels}  # fmt: skip
        self._givers: dict[str, str] = {}
        self._lock = threading.Lock()  # guards `_givers`
        self._counters = {
            name: Counter(name, each.help, each.labels, registry=self._registry)
            for name, each in counted.items()
        }
        ttfb = self._histogram("shmstream_ttfb_seconds", _TTFB_BUCKETS)
        self._pauses = self._histogram("shmstream_takeover_pause_seconds", _PAUSE_BUCKETS)
        self._ttfb = {route: ttfb.labels(route) for route in _TIMED_ROUTES}
        served = self._counters["shmstream_served_bytes_total"]
        self._served = {(route, ""): served.labels(route, "") for route in [*_ROUTES, "other"]}
        self._requests: dict[tuple[str, str, str, int, str], Counter] = {}
        self.clients: Gauge = Gauge(
            "shmstream_clients",
            _help("shmstream_clients"),
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.clients.set(0)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        [told] = [each for each in METRICS if each.name == name]
        return Histogram(name, told.help, told.labels, buckets=buckets, registry=self._registry)

    # Counting.

    def asked(self, upstream: str, outcome: str) -> None:
        """Count a question to an upstream: answered, refused or failed."""
        self._counters["shmstream_upstream_requests_total"].labels(upstream, outcome).inc()

    def received(self, upstream: str, count: int) -> None:
        """Count bytes that came from an upstream."""
        self._counters["shmstream_upstream_bytes_total"].labels(upstream).inc(count)

    def comes_from(self, key: str, upstream: str) -> None:
        """Note which upstream the bytes of a flight come from; `flew` tells of the bytes."""
        with self._lock:
            self._givers.pop(key, None)
            self._givers[key] = upstream
            if len(self._givers) > _MOST_GIVERS:
                del self._givers[next(iter(self._givers))]

    def retried(self, error: SourceError) -> None:
        """Count a failure after which a source is asked again: for `Retries(on_retry=...)`."""
        reason = str(error.kind if error.status is None else error.status)
        self._counters["shmstream_retries_total"].labels(reason).inc()

    def started(self) -> None:
        """Count a worker that begins to serve."""
        self._counters["shmstream_worker_starts_total"].inc()

    def answered(
        self,
        route: str | None,
        upstream: str,
        method: str,
        status: int,
        cache: str | None,
        ttfb: float,
    ) -> None:
        """Count a response that has ended."""
        known = _known(route)
        key = (
            known,
            upstream,
            method if method in _METHODS else "other",
            status,
            cache if cache in _CACHES else "",
        )
        child = self._requests.get(key)
        if child is None:
            requests = self._counters["shmstream_requests_total"]
            child = self._requests[key] = requests.labels(*map(str, key))
        child.inc()
        if known in self._ttfb:
            self._ttfb[known].observe(ttfb)

    def served(self, route: str | None, upstream: str, count: int) -> None:
        """Count bytes of a body that were sent."""
        key = (_known(route), upstream)
        child = self._served.get(key)
        if child is None:
            served = self._counters["shmstream_served_bytes_total"]
            child = self._served[key] = served.labels(*key)
        child.inc(count)

    def lost(self, count: int) -> None:
        """Count lines of the access log that were dropped."""
        self._counters["shmstream_access_log_lost_total"].inc(count)

    def flew(self, event: Event) -> None:
        """Count an event of a flight: for `Store(on_event=...)`."""
        if event.kind is EventKind.RECEIVED:
            self.received(self._givers.get(event.key, ""), event.count)
            return
        if event.kind is EventKind.TOOK_OVER:
            self._pauses.observe(event.seconds)
        if (bytes_of := _BYTES.get(event.kind)) is not None:
            self._counters[bytes_of].inc(event.count)
            return
        if event.kind in (EventKind.ASKED, EventKind.UNANSWERED):
            self._counters["shmstream_directory_calls_total"].inc()
            self._counters["shmstream_directory_away_seconds_total"].inc(event.seconds)
            if event.kind is EventKind.UNANSWERED:
                self._counters["shmstream_directory_failures_total"].inc()
            return
        name, bytes_name = _COUNTED[event.kind]
        self._counters[name].inc()
        if bytes_name is not None:
            self._counters[bytes_name].inc(event.count)

    # Telling.

    def _collected(self) -> list[Metric]:
        """The counts of all workers. Reads their files."""
        if self.folder is None:
            return list(self._registry.collect())
        # A worker that begins makes empty files, for an instant, and merging fails on them.
        files = [str(each) for each in Path(self.folder).glob("*.db") if _size(each)]
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]

    def totals(self) -> Totals:
        """The sums for the status page. Reads files: not for an event loop."""
        return Totals.of(self._collected())

    def render(self, accept: str, seen: Seen) -> tuple[str, bytes]:
        """Content type and body for Prometheus; `seen` has the values of gauges.

        Reads files: not for an event loop.
        """
        collected = self._collected()
        gauges: dict[str, float | Mapping[tuple[str, ...], float]] = dict(seen)
        gauges["shmstream_saved_bytes"] = Totals.of(collected).saved
        found = [_in_order(collected, each, gauges) for each in METRICS]
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # it compares versions, and this one is no number
            encode, content_type = choose_encoder("")
        registry = CollectorRegistry()
        registry.register(_Collected(found))
        return content_type, encode(registry)


class _Collected:
    """Metrics in the form that an encoder takes."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


Seen = Mapping[str, float | Mapping[tuple[str, ...], float]]
"""The values of metrics that are looked at, by name; those with labels by these."""


def _in_order(collected: list[Metric], described: Described, seen: Seen) -> Metric:
    """The samples of a metric: of those that are `seen`, else of those that were counted."""
    if (value := seen.get(described.name)) is not None:
        family = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
        name = described.name.removesuffix("_total")
        found = family(name, described.help, labels=described.labels)
        values = value if isinstance(value, Mapping) else {(): value}
        for labels, each in values.items():
            found.add_metric(labels, each)
        return found
    for metric in collected:
        if metric.name == described.name.removesuffix("_total"):
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            return metric
    name = described.name.removesuffix("_total")  # nothing was counted: there are no labels yet
    return Metric(name, described.help, described.kind)


@dataclass(frozen=True)
class Totals:
    """Sums over all workers since the server was started."""

    served: float = 0  # bytes of blobs and manifests
    upstream: float = 0
    peers: float = 0  # bytes from other nodes
    given: float = 0  # bytes to other nodes
    calls: float = 0  # of the directory
    failures: float = 0  # of these
    away: float = 0  # s; of the directory
    requests: float = 0  # for blobs and manifests
    hits: float = 0  # requests that began no download
    clients: float = 0
    takeovers: float = 0
    aborts: float = 0
    evictions: float = 0
    commits: float = 0

    @property
    def saved(self) -> float:
        """Bytes that were sent to clients, less the bytes that came from upstreams."""
        return self.served - self.upstream

    @classmethod
    def of(cls, collected: Iterable[Metric]) -> Totals:
        """The sums of collected samples."""
        sums = dict.fromkeys(("served", "requests", "hits"), 0.0)
        plain: dict[str, float] = {}
        for sample in (each for metric in collected for each in metric.samples):
            is_pulled = sample.labels.get("route") in _OF_UPSTREAMS
            if sample.name == "shmstream_served_bytes_total" and is_pulled:
                sums["served"] += sample.value
            elif sample.name == "shmstream_requests_total" and is_pulled:
                if cache := sample.labels["cache"]:
                    sums["requests"] += sample.value
                    sums["hits"] += sample.value if cache != "miss" else 0
            elif not sample.labels or sample.name == "shmstream_upstream_bytes_total":
                plain[sample.name] = plain.get(sample.name, 0.0) + sample.value
        names = {
            "upstream": "shmstream_upstream_bytes_total",
            "peers": "shmstream_peer_bytes_total",
            "given": "shmstream_given_bytes_total",
            "calls": "shmstream_directory_calls_total",
            "failures": "shmstream_directory_failures_total",
            "away": "shmstream_directory_away_seconds_total",
            "clients": "shmstream_clients",
            "takeovers": "shmstream_takeovers_total",
            "aborts": "shmstream_aborts_total",
            "evictions": "shmstream_evictions_total",
            "commits": "shmstream_commits_total",
        }
        return cls(**sums, **{key: plain.get(name, 0.0) for key, name in names.items()})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a gauge of a worker that has died
        return 0


def _known(route: str | None) -> str:
    """The label of a route; "other" for any text that is no route of ours."""
    return route if route in _ROUTES else "other"


def _help(name: str) -> str:
    return next(each.help for each in METRICS if each.name == name)
