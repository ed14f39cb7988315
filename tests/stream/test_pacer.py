"""When bytes are published: at once, in steps, or in time by a thread."""

from __future__ import annotations

import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from shmstream import BlobStreamer, InFlightCopier
from shmstream.stream.pacer import Pacer
from shmstream.stream.resumable_writer import ResumableStreamer
from shmstream.stream.subscribers import Subscribers
from shmstream.system import threads
from tests.support.interpreters import live_threads, wait_until


class Published:
    """Counts how often it was told to publish."""

    def __init__(self, publish_bytes: int, interval: float) -> None:
        self.lock = threading.RLock()
        self.pacer = Pacer(self.lock, self.publish, publish_bytes, interval)
        self.told = threading.Semaphore(0)
        self.threads: list[str] = []

    def publish(self) -> None:
        self.pacer.published()
        self.threads.append(threading.current_thread().name)
        self.told.release()

    def end(self) -> None:
        with self.lock:
            self.pacer.close()
        self.pacer.join()


def test_pacing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("shmstream.stream.pacer.time", SimpleNamespace(monotonic=lambda: now))
    owner = Published(1000, 60)
    with owner.lock:
        assert owner.pacer.is_due(1), "the first bytes go out at once"
        owner.pacer.published()
        assert not owner.pacer.is_due(999)
        assert not owner.pacer.is_due(1000), "enough have gathered, but too soon"
        now += 0.004
        assert not owner.pacer.is_due(999)
        assert owner.pacer.is_due(1000), "enough have gathered"
        owner.pacer.published()
        now += 60
        assert owner.pacer.is_due(1), "a pause"
    owner.end()


def test_what_is_left_over_goes_out_by_itself() -> None:
    owner = Published(1000, 0.03)
    for _ in range(4):  # also after the thread has parked
        with owner.lock:
            owner.pacer.published()
            while owner.pacer.is_due(1):  # on a busy machine the interval may be over
                owner.pacer.published()
        assert owner.told.acquire(timeout=60)
    assert owner.threads == ["shmstream-pacer"] * 4
    owner.end()


def test_enough_that_came_too_soon_does_not_wait_for_the_interval() -> None:
    owner = Published(1000, 3600)
    with owner.lock:
        owner.pacer.published()
        while owner.pacer.is_due(1000):
            owner.pacer.published()
    assert owner.told.acquire(timeout=60)
    owner.end()


def test_who_promised_to_come_back_does_not_wait_for_more() -> None:
    """Even if the time to publish passes just before it asks how long it may wait."""
    before = live_threads()
    owner = Published(1 << 20, 0.01)
    with owner.lock:
        owner.pacer.published()
        while owner.pacer.is_time(1):
            owner.pacer.published()
        wait_until(lambda: time.monotonic() > owner.pacer._due)
        assert owner.pacer.due_in() > 0, "0 would be: until more has come"
        assert owner.pacer.is_time(1)
        owner.pacer.published()
        wait_until(lambda: time.monotonic() > owner.pacer._due)
        assert owner.pacer.due_in() == 0, "nothing is left over"
    assert live_threads() == before


def test_no_pacing_without_interval() -> None:
    before = live_threads()
    owner = Published(1 << 20, 0)
    with owner.lock:
        for _ in range(100):
            assert owner.pacer.is_due(1)
            owner.pacer.published()
    assert live_threads() == before
    owner.end()


def test_a_forgotten_owner_is_collected_and_its_thread_ends() -> None:
    owner = Published(1000, 0.02)
    pacer = owner.pacer
    with owner.lock:
        owner.pacer.published()
        while owner.pacer.is_due(1):
            owner.pacer.published()
    del owner
    assert pacer._thread is not None
    pacer._thread.join(60)
    assert not pacer._thread.is_alive()


def test_publishing_goes_on_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threads, "_idle", [])  # an idle thread would run the call
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with BlobStreamer.create(blob) as streamer:
        for count in range(1, 5):
            streamer.append(b"x")
            assert streamer.published == count
        streamer.commit()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the pacer looks at the clock, four milliseconds have passed."""
    clock = count(step=0.004)
    monkeypatch.setattr(
        "shmstream.stream.pacer.time", SimpleNamespace(monotonic=lambda: next(clock))
    )


@pytest.mark.usefixtures("unhurried")
def test_pacing_saves_rings(blob: str) -> None:
    with BlobStreamer.create(blob, publish_bytes=100_000, publish_interval=60) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            for _ in range(250):
                streamer.append(bytes(1000))
            # the first at once, then at every 100,000
            assert streamer.published == 201_000
            streamer.commit()
            assert len(reader.read()) == 250_000


@pytest.mark.usefixtures("unhurried")
def test_a_long_buffer_is_published_in_steps(monkeypatch: pytest.MonkeyPatch, blob: str) -> None:
    seen: list[int] = []
    ring = Subscribers.ring
    with BlobStreamer.create(blob, publish_interval=60) as streamer:

        def note_and_ring(self: Subscribers) -> None:
            seen.append(streamer.published)
            ring(self)

        monkeypatch.setattr(Subscribers, "ring", note_and_ring)
        streamer.append(bytes(5 << 19))
        assert seen == [1 << 20, 2 << 20], "and half a MiB is not due"
        streamer.commit()
        assert streamer.statistics().appended == seen[-1] == 5 << 19
    assert streamer.statistics().subscribers == ()


@pytest.mark.parametrize("published", [1000, 0], ids=["a successor", "of a dead flight"])
def test_the_first_bytes_after_a_takeover_go_out_at_once(tmp_path: Path, published: int) -> None:
    """Readers have waited for them; the interval begins with them, not with the takeover."""
    path = tmp_path / "blob"
    name = leave_orphan(path, published)
    pacing = {"publish_bytes": 1 << 30, "publish_interval": 3600.0}
    if published:
        streamer = ResumableStreamer.succeed(name, **pacing)  # type: ignore[arg-type]
    else:
        streamer = ResumableStreamer.create(path, **pacing)  # type: ignore[arg-type]
        streamer.cut(1000)
        streamer.resume()
    with streamer:
        assert streamer.published == 1000
        streamer.append(b"x")
        assert streamer.published == 1001
        streamer.append(b"y")
        assert streamer.published == 1001, "these wait for more"
        streamer.commit()


def leave_orphan(path: Path, published: int) -> str:
    """The name of a stream without a writer, of which 1,000 bytes were published; or its file."""
    streamer = ResumableStreamer.create(path, name=None if published else "gone")
    streamer.append(bytes(1000))
    if published:
        with InFlightCopier.attach(streamer.name):
            streamer.close()  # hands over, because there is a reader
    else:
        streamer.keeps = True
        streamer.close()
    return streamer.name
