"""What a store tells of the flights that its process leads, and how it paces them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmstream import Event, EventKind, SourceFailed
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.stores import digest

MIB = 1 << 20


def test_events(folder: str, origin: Origin) -> None:
    told: list[Event] = []
    store = make_store(folder, {"on_event": told.append, "max_bytes": MIB})
    url = origin.serve("/blob", seed=1, size=MIB)
    missing = origin.url("/missing")
    store.fetch(digest(1, MIB), [missing, url])
    wait_until(lambda: store.flights() == [])
    key = digest(1, MIB)
    assert told == [
        Event(EventKind.LED, key),
        Event(EventKind.FAILED_OVER, key),
        Event(EventKind.RECEIVED, key, MIB),
        Event(EventKind.COMMITTED, key, MIB),
    ]
    told.clear()
    with pytest.raises(SourceFailed) as caught:
        store.fetch("other", missing)
    assert caught.value.status == 404
    wait_until(lambda: store.flights() == [])
    assert told == [Event(EventKind.LED, "other"), Event(EventKind.REFUSED, "other")]
    told.clear()
    origin.serve("/second", seed=2, size=MIB)
    store.fetch(digest(2, MIB), origin.url("/second"))
    wait_until(lambda: Event(EventKind.EVICTED, key, MIB) in told)
    wait_until(lambda: store.flights() == [])


def test_a_listener_that_fails_ends_no_flight(folder: str, origin: Origin) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError(event)

    store = make_store(folder, {"on_event": fail})
    url = origin.serve("/blob", seed=1, size=1000)
    assert Path(store.fetch(digest(1, 1000), url)).stat().st_size == 1000


def test_pacing_is_the_stores(folder: str, origin: Origin) -> None:
    with pytest.raises(ValueError, match="publish_interval"):
        make_store(folder, {"publish_interval": -1})
    size = 4 * MIB
    url = origin.serve("/blob", seed=1, size=size, rate=16 * MIB)
    waits = []
    for interval in (0.2, 0.001):
        store = make_store(folder, {"publish_bytes": size, "publish_interval": interval})
        with store.open(f"every {interval}", url) as blob:
            steps = 0
            while not blob.is_complete:
                blob.wait_past(blob.published)
                steps += 1
        waits.append(steps)
    assert waits[0] < waits[1]
