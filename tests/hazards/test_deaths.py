"""SIGKILL and SIGSTOP, of writers and readers, at every named point of the protocol."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shmstream import BlobStreamer, InFlightCopier, WriterDied, WriterStalled, sweep
from shmstream.stream import doorbell, segment
from shmstream.stream.claims import reap
from tests.support import roles
from tests.support.faults import READER_POINTS, WRITER_POINTS
from tests.support.interpreters import PATIENCE, Interpreter, wait_until

Start = Callable[..., Interpreter]

AT_CREATION = list(WRITER_POINTS)[:5]
COMPLETE = {"after COMMITTED", "while it closes"}
SIZE = 400_000


def orders_for(point: str) -> list[list[Any]]:
    appends = [["append", 1, SIZE], ["append", 2, SIZE], ["append", 3, SIZE]]
    return [*appends, ["abort", "no"]] if "ABORTED" in point else [*appends, ["commit"], ["close"]]


@pytest.mark.parametrize("cleaner", ["create", "sweep"])
@pytest.mark.parametrize("point", WRITER_POINTS)
def test_writer_killed(point: str, cleaner: str, start: Start, blob: str) -> None:
    name = "victim"
    # The writer dies at the second call, so that something has been published before.
    nth = 1 if point in AT_CREATION or not point.endswith(("write", "published", "post")) else 2
    options = {"name": name, "publish_interval": 0}
    if point in AT_CREATION:
        readers = [start(roles.read, name, {"timeout": PATIENCE}) for _ in range(2)]
        for reader in readers:
            assert reader.hear() == "starting"
        writer = start(roles.write, blob, options, point, nth)
    else:
        writer = start(roles.write, blob, options, point, nth)
        assert writer.hear() == name
        readers = [start(roles.read, name, {}) for _ in range(3)]
        for reader in readers:
            assert [reader.hear(), reader.hear()] == ["starting", "attached"]
        with suppress(BrokenPipeError):  # the writer may be dead before it has heard all orders
            for order in orders_for(point):
                writer.say(order)
    writer.wait_killed()

    whole = b"".join(roles.content(seed, SIZE) for seed in (1, 2, 3))
    for reader in readers:
        outcome = reader.hear()
        if outcome == "attached":
            outcome = reader.hear()
        reader.finish()
        assert outcome["longest_wait"] <= 0.25, "then it looks whether its writer lives"
        assert outcome["sha256"] == roles.sha256(whole[: outcome["bytes"]])
        if point in COMPLETE:
            assert (outcome["error"], outcome["bytes"]) == (None, len(whole))
        else:
            assert outcome["error"] == "WriterDied"
            assert outcome["offset"] == outcome["bytes"]
            assert f"{outcome['bytes']} bytes" in outcome["text"]

    renamed = point in COMPLETE | {"after the rename", "before COMMITTED"}
    assert Path(blob).exists() == renamed
    assert segment.names() == [name]
    if cleaner == "sweep":
        assert name in sweep()
    else:
        BlobStreamer.create(blob, name=name).close()
    assert Path(blob).exists() == renamed, "a committed blob stays"


def test_next_writer_of_the_path_removes_the_partial_file(start: Start, blob: str) -> None:
    writer = start(roles.write, blob, {"name": "first"}, "after write")
    assert writer.hear() == "first"
    with InFlightCopier.attach("first") as reader:  # so that the dead stream is not swept
        writer.say(["append", 1, 1000])
        writer.wait_killed()
        with BlobStreamer.create(blob, name="second") as second:
            second.append(b"other bytes")
            second.commit()
        with pytest.raises(WriterDied):
            reader.read1()
    assert Path(blob).read_bytes() == b"other bytes"
    assert sweep() == ["first"]


def test_late_reader_of_a_dead_stream_gets_what_was_published(start: Start, blob: str) -> None:
    writer = start(roles.write, blob, {"name": "dead", "publish_interval": 0})
    assert writer.hear() == "dead"
    writer.say(["append", 1, 5000])
    assert writer.hear() == "append"
    writer.kill()
    with InFlightCopier.attach("dead") as late:
        assert late.read(5000) == roles.content(1, 5000)
        with pytest.raises(WriterDied) as caught:
            late.read1()
        assert caught.value.offset == 5000
        assert sweep() == [], "somebody reads it"
    assert sweep() == ["dead"]


@pytest.mark.parametrize("point", READER_POINTS)
def test_reader_killed(point: str, start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, max_subscribers=2, publish_interval=0) as streamer:
        streamer.append(roles.content(1, SIZE))
        bystander = start(roles.read, streamer.name, {})
        assert [bystander.hear(), bystander.hear()] == ["starting", "attached"]
        victim = start(roles.read, streamer.name, {}, point)
        assert victim.hear() == "starting"
        if point == "while it closes":
            assert victim.hear() == "attached"
            streamer.append(roles.content(2, SIZE))
            streamer.commit()
            victim.wait_killed()
            whole = roles.content(1, SIZE) + roles.content(2, SIZE)
        else:
            if point == "after the wake":
                assert victim.hear() == "attached"
                # The victim may wake, and so die, before it is rung, if this process is slow.
                wait_until(lambda: all(s.lag == 0 for s in streamer.statistics().subscribers))
                streamer.append(roles.content(2, 1))
            victim.wait_killed()
            # All slots were taken, but the next reader gets the slot of the dead one.
            heir = start(roles.read, streamer.name, {})
            assert [heir.hear(), heir.hear()] == ["starting", "attached"]
            streamer.append(roles.content(3, SIZE))
            streamer.commit()
            whole = Path(blob).read_bytes()
            assert heir.hear()["sha256"] == roles.sha256(whole)
            heir.finish()
        outcome = bystander.hear()
        assert (outcome["error"], outcome["sha256"]) == (None, roles.sha256(whole))
        bystander.finish()


@pytest.mark.parametrize("ends", ["closes", "killed"])
@pytest.mark.parametrize(
    "point", ["after the doorbell is made", "before the membership", "before the wait"]
)
def test_the_end_of_a_stream_finds_the_doorbells_of_the_killed(
    point: str, ends: str, start: Start, blob: str
) -> None:
    """Without listing those of the host; a second reader was killed in the same slot."""
    writer = start(roles.write, blob, {"name": "bells", "publish_interval": 0})
    assert writer.hear() == "bells"
    writer.say(["append", 1, SIZE])
    for _ in range(2):
        victim = start(roles.read, "bells", {}, point)
        assert victim.hear() == "starting"
        victim.wait_killed()
    assert [*doorbell.names()]
    if ends == "closes":
        writer.say(["commit"])
        writer.say(["close"])
        writer.finish()
    else:
        writer.kill()
        assert reap("bells")
    assert [*doorbell.names()] == []


def taken_slots(streamer: BlobStreamer) -> int:
    """How many memberships are active, of live readers and of dead ones."""
    with streamer._block.memberships() as memberships:
        return sum(word & 1 for word in memberships)


def test_writer_reclaims_slots_of_the_killed_by_itself(start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        crowd = start(roles.crowd, streamer.name, 20)
        assert crowd.hear() == "attached"
        with InFlightCopier.attach(streamer.name):
            crowd.kill()
            assert len(streamer.statistics().subscribers) == 1, "of those alive"
            assert taken_slots(streamer) == 21

            def only_one_is_left() -> bool:
                streamer.append(b".")  # a publish now and then looks after one slot
                return taken_slots(streamer) == 1

            wait_until(only_one_is_left)
            [survivor] = streamer.statistics().subscribers
            assert survivor.identity.pid == os.getpid()


def test_readers_killed_in_crowds_leave_nothing(start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, max_subscribers=8, publish_interval=0) as streamer:
        for _ in range(5):
            crowd = start(roles.crowd, streamer.name, 8)
            assert crowd.hear() == "attached"
            crowd.kill()


def test_stopped_writer_is_stalled_not_dead(start: Start, blob: str) -> None:
    writer = start(roles.write, blob, {"publish_interval": 0})
    name = writer.hear()
    patience = 0.6
    reader = start(roles.read_steps, name, {"stall_timeout": patience})
    assert reader.hear() == "attached"
    writer.say(["append", 1, 100])
    assert writer.hear() == "append"
    reader.say(["read", 100])
    assert reader.hear() == roles.content(1, 100).hex()
    writer.stop()
    for _ in range(2):  # reading again waits again
        asked = time.monotonic()
        reader.say(["read1"])
        outcome = reader.hear()
        assert (outcome["error"], outcome["offset"]) == ("WriterStalled", 100)
        assert outcome["at"] - asked >= patience
    reader.say(["read1"])
    writer.say(["append", 2, 50])
    writer.resume()
    while isinstance(heard := reader.hear(), dict):  # the writer may need longer to go on
        assert heard["error"] == "WriterStalled"
        reader.say(["read1"])
    assert heard == roles.content(2, 50).hex()
    assert writer.hear() == "append"
    for order in ("commit", "close"):
        writer.say([order])
        assert writer.hear() == order
    reader.say(["read1"])
    assert reader.hear() == ""
    reader.say(["close"])
    assert reader.hear() == "close"


def test_slow_progress_is_not_a_stall(blob: str) -> None:
    """A reader that waits far ahead of the tail is patient for as long as the tail moves."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name, stall_timeout=0.2) as reader:
            reader.seek(1000)
            began = time.monotonic()
            streamer.append(b"x")
            with pytest.raises(WriterStalled):
                reader.read1()
            assert time.monotonic() - began >= 0.2
            assert reader.tell() == 1000


def test_stopped_reader_holds_up_nobody(start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0, max_subscribers=2) as streamer:
        stopped = start(roles.read, streamer.name, {})
        assert [stopped.hear(), stopped.hear()] == ["starting", "attached"]
        stopped.stop()
        other = start(roles.read, streamer.name, {})
        assert [other.hear(), other.hear()] == ["starting", "attached"]
        whole = roles.content(1, 5 * SIZE)
        streamer.transfer([whole])
        assert other.hear()["sha256"] == roles.sha256(whole)
        stopped.resume()
        assert stopped.hear()["sha256"] == roles.sha256(whole)


def test_forked_child_does_not_keep_a_dead_writer_alive(start: Start, blob: str) -> None:
    writer = start(roles.forking_writer, blob)
    told = writer.hear()
    assert writer.hear() == "StreamClosed", "the child cannot write"
    with InFlightCopier.attach(told["name"]) as reader:
        assert reader.read(10) == b"some bytes"
        writer.signal(signal.SIGKILL)
        writer.process.wait()
        with pytest.raises(WriterDied):
            reader.read1()
    os.kill(told["child"], signal.SIGKILL)
    assert sweep() == [told["name"]]


def test_the_death_of_a_writer_is_seen_at_once(
    start: Start, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells it. So a reader notices it that would look only in an hour."""
    monkeypatch.setattr("shmstream.stream.waiter._SLICE", 3600.0)
    writer = start(roles.write, blob, {"name": "dies", "publish_interval": 0})
    assert writer.hear() == "dies"
    writer.say(["append", 1, 1000])
    assert writer.hear() == "append"
    with InFlightCopier.attach("dies") as reader, ThreadPoolExecutor() as pool:
        assert reader.read(1000) == roles.content(1, 1000)
        dying = pool.submit(reader.read1)
        wait_until(lambda: reader.statistics().waits > 0)
        writer.kill()
        with pytest.raises(WriterDied):
            dying.result(PATIENCE)
    assert sweep() == ["dies"]


def test_a_death_is_seen_by_a_reader_that_has_bytes_to_read(
    start: Start, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring that tells the death is forgotten with the rings of the bytes; the death is not."""
    monkeypatch.setattr("shmstream.stream.waiter._SLICE", 3600.0)
    writer = start(roles.write, blob, {"name": "dies", "publish_interval": 0})
    assert writer.hear() == "dies"
    with InFlightCopier.attach("dies") as reader, ThreadPoolExecutor() as pool:
        first = pool.submit(reader.read, 1000)
        wait_until(lambda: reader.statistics().waits > 0)
        writer.say(["append", 1, 5000])
        assert writer.hear() == "append"
        writer.kill()
        wait_until(lambda: reader._tail._watch is None or reader._tail._watch.has_ended)
        assert first.result(PATIENCE) == roles.content(1, 5000)[:1000]
        assert reader.read(4000) == roles.content(1, 5000)[1000:]
        with pytest.raises(WriterDied):
            pool.submit(reader.read1).result(PATIENCE)
    assert sweep() == ["dies"]
