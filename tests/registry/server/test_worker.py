"""A worker that ends leaves its flights to the others."""

from __future__ import annotations

import os
import signal
from http.client import IncompleteRead

import psutil
import pytest

from shmstream import Store
from tests.support.crowds import BLOB, DATA, MIB, clients_of, finish, leader
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.serving import Serve, Serving


@pytest.mark.parametrize("keep", ["--keep", "--no-keep"])
def test_a_worker_that_is_replaced_hands_over(
    serve: Serve, origin: Origin, upstream: str, keep: str
) -> None:
    """At SIGHUP all of them are: clients have `grace` to finish, and flights go on elsewhere.

    With a keeper, the clients go on elsewhere as well.
    """
    origin.change(BLOB, first=0, count=1, stall_after=MIB)
    serving = serve("--grace", "1s", keep, upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    before = set(serving.workers())
    for worker in before:  # their grace begins once the new workers have clients
        os.kill(worker, signal.SIGSTOP)
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(set(serving.workers()) - before) == 2)
    new = set(serving.workers()) - before
    later = clients_of(new, serving, store, starts=4)  # they follow a flight of an old worker
    for worker in before:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not before & set(serving.workers()))  # the grace of a second is over
    assert finish(later) >= 2, "one of each"
    are_all = finish(clients) == len(clients)
    assert are_all == (keep == "--keep"), "else the leader's own are cut after the grace"
    first, second, *others = origin.requests(BLOB)
    assert (first.status, second.status) == (200, 206)
    assert second.range == f"bytes={MIB}-"
    takeovers = serving.metric("shmstream_takeovers_total")
    # The other old worker may have taken over first, and handed over as well.
    assert 1 + len(others) <= takeovers <= 2
    assert serving.metric("shmstream_handovers_total") >= 1
    assert " ERROR " not in serving.log


@pytest.mark.parametrize("keep", ["--keep", "--no-keep"])
def test_the_worker_that_leads_is_killed(
    serve: Serve, origin: Origin, upstream: str, keep: str
) -> None:
    origin.change(BLOB, first=0, count=1, stall_after=MIB)
    serving = serve(keep, upstream=upstream)
    store = Store(serving.store)
    clients = clients_of(set(serving.workers()), serving, store)
    os.kill(leader(store), signal.SIGKILL)
    finished = finish(clients)
    assert finished > 0
    assert (finished == len(clients)) == (keep == "--keep")
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
