"""What a store tells of the flights that its process leads, and how it paces them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from shmstream import Event, EventKind, SourceFailed
from tests.support.flights import make_store
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.stores import digest, has_published

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


@pytest.mark.parametrize(("interval", "expected"), [(3600.0, [1, 1, 1]), (0.001, [1, 2, 3])])
def test_pacing_is_the_stores(interval: float, expected: list[int], folder: str) -> None:
    with pytest.raises(ValueError, match="publish_interval"):
        make_store(folder, {"publish_interval": -1})
    store = make_store(folder, {"publish_bytes": MIB, "publish_interval": interval})
    published: list[int] = []

    def silent_between() -> Iterator[bytes]:
        for count in expected:
            yield b"x"
            wait_until(partial(has_published, store, count))
            published.append(store.flights()[0].published)

    store.fetch("key", silent_between())
    assert published == expected
