"""Nodes that give each other what they have in flight: real Redis, real origin, real kills."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import threading
import time
from typing import Any

import pytest

from shmstream import (
    DigestMismatch,
    EventKind,
    OutOfRoom,
    SourceFailed,
    Store,
    StoreUnusable,
)
from shmstream.cluster import announcer, directory, peer
from shmstream.cluster.endpoint import Endpoint, _Giving
from shmstream.cluster.scripts import SUSPECT_FOR
from shmstream.system import process
from tests.support.cluster import Nodes, Reading
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.redis import Late, Redis
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 3_000_000
KEY = digest(1, SIZE)
SHA = KEY.removeprefix("sha256:")
HALF = SIZE // 2
RATE = 6_000_000  # bytes/s


def gets(origin: Origin) -> list[str | None]:
    """The ranges that the origin was asked for."""
    return [each.range for each in origin.requests("/blob") if each.method == "GET"]


def has(store: Store, count: int) -> bool:
    return bool(store.flights()) and store.flights()[0].published >= count


def received(nodes: Nodes, store: Store, kind: EventKind) -> int:
    return nodes.counts[store.folder].bytes.get(kind, 0)


@pytest.fixture
def slow(origin: Origin) -> Origin:
    """An origin whose blob takes half a second."""
    origin.serve("/blob", seed=1, size=SIZE, rate=RATE)
    return origin


@pytest.fixture
def halting(origin: Origin) -> Origin:
    """An origin that halts in the middle of its first answer, until `release`."""
    origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=HALF)
    return origin


# One pull.


def test_one_get_for_all_nodes(nodes: Nodes, slow: Origin) -> None:
    stores = [nodes.store() for _ in range(5)]
    readings = [Reading(each, KEY, slow.url("/blob")) for each in stores]
    assert all(each.is_right(KEY) for each in readings)
    assert gets(slow) == [None]
    assert sum(received(nodes, each, EventKind.RECEIVED) for each in stores) == SIZE
    assert sum(received(nodes, each, EventKind.FROM_PEER) for each in stores) == 4 * SIZE


def test_a_node_that_comes_later_gets_all_that_is_there_at_once(
    nodes: Nodes, halting: Origin
) -> None:
    first, second = nodes.store(), nodes.store()
    readings = [Reading(first, KEY, halting.url("/blob"))]
    wait_until(lambda: has(first, HALF))
    readings.append(Reading(second, KEY, halting.url("/blob")))
    wait_until(lambda: has(second, HALF))  # and the origin gives nothing meanwhile
    halting.release()
    assert all(each.is_right(KEY) for each in readings)
    assert gets(halting) == [None]


def test_a_complete_blob_is_given_without_its_origin(nodes: Nodes, slow: Origin) -> None:
    first, second = nodes.store(), nodes.store()
    first.fetch(KEY, slow.url("/blob"))
    slow.refuse()
    nodes.settle(first)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)
    slow.accept()


def test_a_stored_blob_that_is_wrong_is_given_to_nobody(
    nodes: Nodes, slow: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = nodes.store(), nodes.store()
    path = first.fetch(KEY, slow.url("/blob"))
    with open(path, "r+b") as file:
        file.write(b"wrong")
    nodes.settle(first)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)
    assert "is not given to peers" in caplog.text
    first.remove(KEY)


def test_a_blob_without_a_seal_is_given_once_it_is_hashed(nodes: Nodes, slow: Origin) -> None:
    first, second = nodes.store(durable=False), nodes.store()
    first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)
    assert gets(slow) == [None]


@pytest.mark.parametrize("how", ["removed", "evicted", "without a word"])
def test_a_holder_that_has_the_blob_no_more(nodes: Nodes, slow: Origin, how: str) -> None:
    first, second = nodes.store(), nodes.store()
    path = first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    if how == "removed":
        first.remove(KEY)
    elif how == "evicted":
        first.evict(0)
    else:
        os.unlink(path)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)
    assert gets(slow) == [None, None]


def test_names_stay_on_their_host(nodes: Nodes, slow: Origin) -> None:
    for store in (nodes.store(), nodes.store()):
        store.fetch("a name", slow.url("/blob"))
    assert len(gets(slow)) == 2


def test_a_consumer_gets_and_does_not_give(nodes: Nodes, halting: Origin) -> None:
    first, consumer = nodes.store(), nodes.store(None)
    readings = [Reading(first, KEY, halting.url("/blob"))]
    wait_until(lambda: has(first, HALF))
    readings.append(Reading(consumer, KEY, halting.url("/blob")))
    wait_until(lambda: has(consumer, HALF))
    halting.release()
    assert all(each.is_right(KEY) for each in readings)
    assert gets(halting) == [None]


def test_a_consumer_alone_goes_to_the_origin(nodes: Nodes, slow: Origin) -> None:
    assert Reading(nodes.store(None), KEY, slow.url("/blob")).is_right(KEY)
    assert gets(slow) == [None]


# Deaths.


def begin(nodes: Nodes, url: str, count: int, fan: int = 2, **lies: int) -> list[Interpreter]:
    """So many nodes, each a process; the first one leads, and each has some bytes."""
    made = nodes.processes(*(nodes.where() for _ in range(count)), fan=fan, **lies)
    for each in made:
        each.say([KEY, url])
        assert each.hear() == "began"
    return made


def finish(*nodes: Interpreter) -> list[dict[str, Any]]:
    """Wait until all have the blob; then they may go."""
    told: list[dict[str, Any]] = [each.hear() for each in nodes]
    for each in nodes:
        each.say("end")
    assert [each["error"] for each in told] == [None] * len(nodes)
    assert {each["sha"] for each in told} == {SHA}
    return told


def test_the_leading_node_is_killed(nodes: Nodes, halting: Origin) -> None:
    leader, *others = begin(nodes, halting.url("/blob"), 3)
    leader.kill()
    finish(*others)
    first, *more = gets(halting)
    assert first is None
    assert len(more) == 1  # one of them led
    assert more[0] is not None  # and went on where it was


def test_a_node_in_the_middle_is_killed(nodes: Nodes, halting: Origin) -> None:
    first, middle, last = begin(nodes, halting.url("/blob"), 3, fan=1)
    middle.kill()
    halting.release()
    finish(first, last)
    assert gets(halting) == [None]


def test_the_leading_process_of_a_node_is_killed(nodes: Nodes, halting: Origin) -> None:
    where, url = nodes.where(), halting.url("/blob")
    leader, heir, other = nodes.processes(where, where, nodes.where())
    for each in (leader, heir, other):
        each.say([KEY, url])
        assert each.hear() == "began"
    leader.kill()
    _, told = finish(heir, other)
    assert told["from a peer"] == SIZE
    assert len(gets(halting)) == 2


def test_the_leading_node_is_stopped(nodes: Nodes, halting: Origin) -> None:
    nodes.lease = 1.0
    leader, other = begin(nodes, halting.url("/blob"), 2)
    leader.stop()
    told = other.hear()
    assert told["sha"] == SHA
    assert told["error"] is None
    leader.resume()  # it learns that others have the blob, and does not wait for the origin
    [told] = finish(leader)
    assert told["from a peer"] > 0
    other.say("end")


# The directory.


def test_without_a_directory_each_is_for_itself(nodes: Nodes, slow: Origin, redis: Redis) -> None:
    redis.kill()
    stores = [nodes.store() for _ in range(3)]
    readings = [Reading(each, KEY, slow.url("/blob")) for each in stores]
    assert all(each.is_right(KEY) for each in readings)
    assert len(gets(slow)) == 3


@pytest.mark.parametrize("how", ["killed", "hangs", "wiped", "killed and back"])
def test_flights_under_way_go_on(nodes: Nodes, halting: Origin, redis: Redis, how: str) -> None:
    stores = [nodes.store() for _ in range(4)]
    readings = [Reading(each, KEY, halting.url("/blob")) for each in stores]
    wait_until(lambda: all(has(each, HALF - 100_000) for each in stores))
    {"killed": redis.kill, "hangs": redis.stop, "wiped": redis.wipe}.get(how, redis.kill)()
    if how == "killed and back":
        redis.start()
    halting.release()
    assert all(each.is_right(KEY) for each in readings)
    assert gets(halting) == [None]


def test_a_hanging_directory_costs_one_call_that_is_given_up(
    nodes: Nodes, slow: Origin, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a call may take is told in test_directory; here, that one is all it costs.

    The node may introduce itself at the same time: both are asked in one go, and given up together.
    """
    monkeypatch.setattr(directory, "AWAY", 3600.0)
    store = nodes.store()
    redis.stop()
    store.fetch(KEY, slow.url("/blob"))
    assert store._node is not None
    assert 1 <= store._node.directory.failures <= store._node.directory.calls <= 2
    assert (
        "no answer" in store._node.directory.trouble or "Timeout" in store._node.directory.trouble
    )
    assert gets(slow) == [None]


def test_wiped_and_then_the_leading_node_is_killed(
    nodes: Nodes, halting: Origin, redis: Redis
) -> None:
    leader, other = begin(nodes, halting.url("/blob"), 2)
    redis.wipe()
    leader.kill()
    finish(other)
    assert len(gets(halting)) == 2


def test_a_directory_that_answers_late_costs_no_second_pull(
    nodes: Nodes, slow: Origin, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many blobs at once, on nodes that wait for each answer for longer than to connect."""
    monkeypatch.setattr(directory, "MOST", 60.0)
    keys = [digest(seed, 100_000) for seed in range(2, 14)]
    for seed, _ in enumerate(keys, 2):
        slow.serve(f"/blob{seed}", seed=seed, size=100_000)
    with Late(redis) as late:
        late.late = directory._ONE_TRY + 0.05
        nodes.url = late.url
        stores = [nodes.store() for _ in range(2)]
        readings = [
            (key, Reading(store, key, slow.url(f"/blob{seed}")))
            for seed, key in enumerate(keys, 2)
            for store in stores
        ]
        assert all(each.is_right(key) for key, each in readings)
        assert [len(slow.requests(f"/blob{seed}")) for seed, _ in enumerate(keys, 2)] == [1] * 12
        assert not any(each._node.directory.failures for each in stores)  # type: ignore[union-attr]
        for each in stores:
            nodes.settle(each)
            each.close()


def test_a_leader_that_is_silent_and_then_complete_is_asked_again(
    nodes: Nodes, halting: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    child                                   leader
    asks it for bytes
                                            is busy, does not answer
                                            completes the blob; its lease ends with that
    gives up, asks the directory without
      it: nobody has the lease, but this
      node has the blob: asks it again
    """
    first, second = nodes.store(), nodes.store()
    answer, is_done, is_asked = Endpoint._answer, threading.Event(), threading.Event()

    def be_silent(self: Endpoint, talk: socket.socket, peer: str) -> None:
        if not is_asked.is_set():
            is_asked.set()
            assert is_done.wait(60)
            raise OSError("it closes the connection without an answer")
        answer(self, talk, peer)

    monkeypatch.setattr(peer, "READ", 60.0)
    monkeypatch.setattr(Endpoint, "_answer", be_silent)
    readings = [Reading(first, KEY, halting.url("/blob"))]
    wait_until(lambda: has(first, 1000))
    readings.append(Reading(second, KEY, halting.url("/blob")))
    assert is_asked.wait(60)
    halting.release()
    assert readings[0].is_right(KEY)
    nodes.settle(first)
    is_done.set()
    assert readings[1].is_right(KEY)
    assert gets(halting) == [None]


# The upstream.


def test_an_upstream_that_fails_fails_for_all_together(nodes: Nodes, origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE, status=503)
    stores = [nodes.store() for _ in range(4)]
    readings = [Reading(each, KEY, origin.url("/blob")) for each in stores]
    for each in readings:
        each.finish()
        assert isinstance(each.error, SourceFailed)
        assert each.error.status == 503
    assert len(gets(origin)) <= 2 * 8  # a node alone asks 8 times; one may have come late


def test_a_refusal_belongs_to_one_node(nodes: Nodes, slow: Origin) -> None:
    """Another node may have other credentials: it asks for itself."""
    slow.serve("/refused", seed=1, size=SIZE, status=403)
    first, second = nodes.store(), nodes.store()
    refused = Reading(first, KEY, slow.url("/refused"))
    refused.finish()
    assert isinstance(refused.error, SourceFailed)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)


def test_a_wrong_blob_of_the_upstream_is_completed_by_nobody(nodes: Nodes, origin: Origin) -> None:
    origin.serve("/blob", seed=1, size=SIZE, wrong_at=1000, rate=RATE)
    stores = [nodes.store() for _ in range(3)]
    readings = [Reading(each, KEY, origin.url("/blob")) for each in stores]
    for each in readings:
        each.finish()
        assert isinstance(each.error, DigestMismatch)
        assert each.size < SIZE
    assert not any(KEY in each for each in stores)
    origin.serve("/blob", seed=1, size=SIZE)
    assert all(Reading(each, KEY, origin.url("/blob")).is_right(KEY) for each in stores)


# A peer that lies.


def test_a_peer_that_gives_a_wrong_byte(
    nodes: Nodes, halting: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar, victim = nodes.store(), nodes.store()
    copy = Endpoint._copy

    def lie(self: Endpoint, talk: socket.socket, blob: Any, start: int) -> None:
        if self is not liar._node.endpoint:  # type: ignore[union-attr]
            copy(self, talk, blob, start)
            return
        blob.seek(start)
        talk.sendall(b"\xff" + blob.read(1000)[1:])
        copy(self, talk, blob, start + 1000)

    monkeypatch.setattr(Endpoint, "_copy", lie)
    leading = Reading(liar, KEY, halting.url("/blob"))
    wait_until(lambda: has(liar, HALF))
    deceived = Reading(victim, KEY, halting.url("/blob"))
    wait_until(lambda: has(victim, 100_000))
    halting.release()
    assert leading.is_right(KEY)
    deceived.finish()
    assert isinstance(deceived.error, DigestMismatch)
    nodes.settle(victim)
    assert Reading(victim, KEY, halting.url("/blob")).is_right(KEY)  # not from the liar
    assert len(gets(halting)) == 2


def try_again(nodes: list[Interpreter], url: str) -> list[int]:
    """Wait until each has the blob; who gets an error tries again at once. How many errors each."""
    errors = []
    for each in nodes:
        count = 0
        while (told := each.hear())["error"] is not None:
            assert "DigestMismatch" in told["error"] or "by now, not" in told["error"]
            assert told["size"] < SIZE
            count += 1
            each.say([KEY, url])
            assert each.hear() == "began"
        assert told["sha"] == SHA
        errors.append(count)
    for each in nodes:
        each.say("end")
    return errors


def bad_for(redis: Redis) -> dict[str, float]:
    """The nodes that are no parents now, and for how many seconds more."""
    with redis.client() as client:
        found = client.zrange(f"shmstream:{{{KEY}}}:bad", 0, -1, withscores=True)
        seconds, micros = client.time()
        return {name.decode(): until - seconds - micros / 1e6 for name, until in found}


def test_a_leader_lies_to_a_tree(nodes: Nodes, halting: Origin, redis: Redis) -> None:
    """Each node but the leader has the wrong byte, from the leader or from one another."""
    url = halting.url("/blob")
    made = begin(nodes, url, 4, fan=1, liar=0, wrong_at=HALF // 2)
    halting.release()
    assert try_again(made, url) == [0, 1, 1, 1]
    assert gets(halting) == [None, None]  # one of those that tried again led
    assert [name for name, left in bad_for(redis).items() if left > SUSPECT_FOR] == [
        nodes.addresses[0]
    ]


def test_a_node_in_the_middle_lies(nodes: Nodes, halting: Origin, redis: Redis) -> None:
    """Those below it get the blob from nodes that have it; the honest leader is not blamed."""
    url = halting.url("/blob")
    made = begin(nodes, url, 4, fan=1, liar=1, wrong_at=HALF // 2)
    halting.release()
    assert try_again(made, url) == [0, 0, 1, 1]
    assert gets(halting) == [None]
    assert [name for name, left in bad_for(redis).items() if left > SUSPECT_FOR] == [
        nodes.addresses[1]
    ]


@pytest.mark.parametrize("more", [1000, -1000, 1 << 50])
def test_a_leader_tells_a_wrong_size(nodes: Nodes, halting: Origin, more: int) -> None:
    url = halting.url("/blob")
    made = begin(nodes, url, 3, fan=1, liar=0, more=more)
    halting.release()
    errors = try_again(made, url)
    if more > SIZE:  # no node has room for so much, so the upstream is asked whether that is so
        assert errors == [0, 0, 0]
    else:
        assert errors in ([0, 1, 1], [0, 1, 0])


def test_a_consumer_of_a_holder_that_lies(nodes: Nodes, slow: Origin, redis: Redis) -> None:
    """It is nobody's parent, and yet it tells which node lies."""
    url = slow.url("/blob")
    [liar] = nodes.processes(nodes.where(), liar=0, wrong_at=HALF)
    liar.say([KEY, url])
    assert liar.hear() == "began"
    assert liar.hear()["sha"] == SHA
    wait_until(lambda: holders(redis, KEY) == nodes.addresses)
    consumer = nodes.store(None)
    deceived = Reading(consumer, KEY, url)
    deceived.finish()
    assert isinstance(deceived.error, DigestMismatch)
    assert bad_for(redis)[nodes.addresses[0]] > SUSPECT_FOR
    assert Reading(consumer, KEY, url).is_right(KEY)
    assert len(gets(slow)) == 2
    liar.say("end")


# Processes.


def test_a_forked_child_is_of_the_same_node(nodes: Nodes, halting: Origin) -> None:
    store, other = nodes.store(), nodes.store()
    heard, says = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with store.open(KEY, halting.url("/blob")) as blob:
                blob.read(1000)
                os.write(says, b"!")
                code = 0 if len(blob.read()) == SIZE - 1000 else 2
                blob.wait()
            process.close_all()
        finally:
            os._exit(code)
    assert os.read(heard, 1) == b"!"
    reading = Reading(other, KEY, halting.url("/blob"))
    wait_until(lambda: has(other, HALF - 100_000))
    halting.release()
    assert reading.is_right(KEY)
    assert os.waitpid(child, 0)[1] == 0
    os.close(heard)
    os.close(says)
    assert gets(halting) == [None]


def test_a_store_of_a_cluster_can_be_pickled(nodes: Nodes, slow: Origin) -> None:
    store = nodes.store()
    nodes.counts[store.folder] = counts = nodes.counts.pop(store.folder)
    store._on_event = None
    again = pickle.loads(pickle.dumps(store))
    nodes.stores.append(again)
    nodes.counts[again.folder] = counts
    assert Reading(again, KEY, slow.url("/blob")).is_right(KEY)


def test_a_store_that_is_dropped_listens_no_more(nodes: Nodes) -> None:
    address = nodes.ports.take()
    store: Store | None = nodes.store(address)
    host, port = address.split(":")
    socket.create_connection((host, int(port))).close()
    nodes.stores.clear()
    store = None  # noqa: F841
    import gc

    gc.collect()
    wait_until(lambda: _refuses(host, int(port)))  # a thread of it may be at work still


def _refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_address_that_another_program_has(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(StoreUnusable, match=r"cannot listen on 127\.0\.0\.1"):
            nodes.store(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_closed_store_is_of_no_cluster(nodes: Nodes, slow: Origin) -> None:
    first, second = nodes.store(), nodes.store()
    first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    second.close()
    second.close()
    second.fetch(KEY, slow.url("/blob"))
    assert len(gets(slow)) == 2


def test_a_directory_that_comes_back_empty_learns_what_nodes_have(
    nodes: Nodes, slow: Origin, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "AWAY", 0.05)
    first, second = nodes.store(), nodes.store()
    first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    redis.kill()
    first.fetch(digest(2, 10), [content(2, 10)])  # notices that it is away
    nodes.settle(first)
    redis.start()
    time.sleep(0.1)  # the time for which it is not asked
    first.fetch(digest(3, 10), [content(3, 10)])  # notices that it is back
    nodes.settle(first)
    assert Reading(second, KEY, slow.url("/blob")).is_right(KEY)
    assert gets(slow) == [None]


def holders(redis: Redis, key: str) -> list[str]:
    with redis.client() as client:
        return [each.decode() for each in client.zrange(f"shmstream:{{{key}}}:have", 0, -1)]


def test_a_store_that_is_warm_tells_what_it_has(nodes: Nodes, slow: Origin, redis: Redis) -> None:
    folder, address = nodes.place(), nodes.ports.take()
    cold = Store(folder)
    cold.fetch(KEY, slow.url("/blob"))
    cold.fetch("a name", [b"stays here"])
    warm = nodes.store(address, folder)
    wait_until(lambda: holders(redis, KEY) == [address])
    assert warm._node is not None
    assert Reading(nodes.store(), KEY, slow.url("/blob")).is_right(KEY)
    assert gets(slow) == [None]
    with redis.client() as client:
        assert not [each for each in client.scan_iter() if b"name" in each]


def test_a_node_that_does_nothing_finds_that_the_directory_was_wiped(
    nodes: Nodes, slow: Origin, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "EVERY", 0.05)
    address, folder = nodes.ports.take(), nodes.place()
    store = nodes.store(address, folder)
    nodes.store(address, folder)  # another process of the same node, as it were
    store.fetch(KEY, slow.url("/blob"))
    nodes.settle(store)
    for closed in (None, store):  # which of the two tells does not matter
        if closed is not None:
            closed.close()
        redis.wipe()
        wait_until(lambda: holders(redis, KEY) == [address])


def test_a_busy_holder_is_waited_for(nodes: Nodes, slow: Origin) -> None:
    """Nobody pulls again what a node has, only because that gives to others just now."""
    first = nodes.store(max_peers=1)
    first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    assert first._node is not None
    endpoint = first._node.endpoint
    assert endpoint is not None
    with endpoint._lock:
        endpoint._giving[-1] = _Giving("another blob", "another node")
    reading = Reading(nodes.store(), KEY, slow.url("/blob"))
    asked = endpoint._guard
    wait_until(lambda: len(asked._seen) >= 3)  # it was refused, and asked again
    with endpoint._lock:
        del endpoint._giving[-1]
    assert reading.is_right(KEY)
    assert gets(slow) == [None]


# Downloads beside the flight of a host.


def test_a_client_without_room_gets_it_from_a_node(nodes: Nodes, slow: Origin) -> None:
    first, small = nodes.store(), nodes.store(max_bytes=1_000_000)
    first.fetch(KEY, slow.url("/blob"))
    nodes.settle(first)
    with pytest.raises(OutOfRoom) as caught:
        small.fetch(KEY, slow.url("/blob"))
    asked = len(gets(slow))
    for start, end in ((0, None), (HALF, HALF + 1000)):
        with small.pass_through(KEY, slow.url("/blob"), caught.value) as passage:
            passage.give(start, end, passage.ask_now())
            assert b"".join(passage) == content(1, SIZE)[start:end]
    assert len(gets(slow)) == asked
    assert received(nodes, small, EventKind.FROM_PEER) >= SIZE
    assert small._node is not None
    wait_until(lambda: small._node.directory._users == 0)  # type: ignore[union-attr]


def test_a_reader_that_goes_past_its_leader_gets_it_from_a_node(
    nodes: Nodes, halting: Origin
) -> None:
    """The leader on its host hangs; a node that has the blob has come meanwhile."""
    url = halting.url("/blob")
    address, folder = nodes.where()
    [leader] = nodes.processes((address, folder))
    leader.say([KEY, url])
    assert leader.hear() == "began"
    cold = nodes.place()
    Store(cold).fetch(KEY, url)
    nodes.store(None, cold)
    nodes.store(nodes.ports.take(), cold)
    beside = nodes.store(address, folder)
    wait_until(lambda: len(holders(nodes.redis, KEY)) == 1)
    with beside.open(KEY, url, stall_timeout=0.2) as blob:
        assert hashlib.sha256(blob.read()).hexdigest() == SHA
    assert gets(halting) == [None, None]
    halting.release()
    finish(leader)
