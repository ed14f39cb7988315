"""Clients of one blob of `shmstream serve`, so many that each of its workers has one."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPResponse, IncompleteRead

from shmstream import Store
from tests.support.interpreters import wait_until
from tests.support.roles import content, sha256
from tests.support.serving import Serving
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 3 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)
BLOB = f"/v2/team/app/blobs/{KEY}"

Client = tuple[HTTPConnection, HTTPResponse]


def clients_of(workers: set[int], serving: Serving, store: Store, starts: int = 2) -> list[Client]:
    """Clients of one flight, so many that each of `workers` has one: the kernel chooses the worker.

    Waits first until `starts` workers have begun to serve.
    """
    wait_until(lambda: serving.metric("shmstream_worker_starts_total") == starts)
    clients: list[Client] = []
    while not workers <= users(store):
        assert len(clients) < 500, "only one of the workers is given connections"
        clients.append(serving.open(BLOB))
    return clients


def finish(clients: list[Client]) -> int:
    """Read all responses to their ends; how many clients got the whole blob."""
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
