"""The directory: a real Redis that refuses, hangs, is wiped, and comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from shmstream.cluster import directory as module
from shmstream.cluster.directory import Directory, DirectoryAway, Me, Verdict
from shmstream.system import process
from tests.support.interpreters import wait_until
from tests.support.redis import Redis

KEY = "sha256:" + "0" * 64
A, B, C = Me("a:1", "ta"), Me("b:1", "tb"), Me("c:1", "tc")
CONSUMER = Me("", "t")
SLACK = 0.5  # s; what a busy machine may add


@pytest.fixture
def directory(redis: Redis) -> Iterator[Directory]:
    made = Directory(redis.url)
    yield made
    made.close()


def test_one_leads_and_the_others_get_a_tree(directory: Directory) -> None:
    assert directory.decide(KEY, A) == (Verdict.LEAD, (), "", "")
    assert directory.decide(KEY, A).verdict is Verdict.LEAD  # again: it still has the lease
    nodes = [Me(f"n{each}:1", f"t{each}") for each in range(6)]
    parents = [directory.decide(KEY, each).peers[0] for each in nodes]
    assert parents == ["a:1", "a:1", "n0:1", "n0:1", "n1:1", "n1:1"]


def test_holders_come_first_and_are_asked_for_all_of_it(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.leave(KEY, A, "complete")
    assert directory.decide(KEY, B).peers == ("+a:1",)
    assert directory.decide(KEY, CONSUMER).peers[0] == "+a:1"
    directory.leave(KEY, A, "evicted")
    assert directory.decide(KEY, B).verdict is Verdict.LEAD


def test_a_leader_that_is_refused_loses_the_lease(directory: Directory) -> None:
    directory.decide(KEY, A)
    assert directory.decide(KEY, B).peers == ("a:1",)
    assert directory.decide(KEY, B, refused=["a:1"]).verdict is Verdict.LEAD
    assert directory.renew([(KEY, A)]) == [False]
    assert directory.renew([(KEY, B)]) == [True]
    assert directory.decide(KEY, A).peers == ("b:1",)


def test_a_leader_that_stalls_keeps_the_lease_while_it_renews_it(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.decide(KEY, B)
    assert directory.decide(KEY, B, avoid=["a:1"]) == (Verdict.WAIT, (), "a:1", "")


def test_the_lease_ends_by_itself(redis: Redis) -> None:
    short = Directory(redis.url, lease=0.05)
    short.decide(KEY, A)
    short.decide(KEY, B)
    wait_until(lambda: short.decide(KEY, B, avoid=["a:1"]).verdict is Verdict.LEAD)
    short.close()


def test_a_failure_of_the_upstream_is_told_to_those_that_waited(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.decide(KEY, B, source="here")
    directory.leave(KEY, A, "failed", "here it answered 503")
    told = directory.decide(KEY, B, source="here")
    assert (told.verdict, told.why) == (Verdict.FAILED, "here it answered 503")
    assert directory.decide(KEY, B, source="elsewhere").verdict is Verdict.LEAD
    directory.leave(KEY, B, "over")
    assert directory.decide(KEY, C, source="here").verdict is Verdict.LEAD  # it begins afresh


def test_only_the_node_that_made_bytes_wrong_is_blamed(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.decide(KEY, B)
    directory.leave(KEY, B, "wrong", "a:1")  # B got them from A ...
    directory.leave(KEY, C, "wrong", "b:1")  # ... and C from B
    assert directory.decide(KEY, C).verdict is Verdict.LEAD  # A is bad, so its lease is void
    directory.decide(KEY, B)
    assert "b:1" in directory.decide(KEY, Me("d:1", "td"), avoid=["c:1"]).peers


def test_a_consumer_is_nobodys_parent_and_never_leads(directory: Directory) -> None:
    assert directory.decide(KEY, CONSUMER).verdict is Verdict.WAIT
    directory.decide(KEY, A)
    assert directory.decide(KEY, CONSUMER).peers == ("a:1",)
    assert directory.decide(KEY, B).peers == ("a:1",)


def test_an_empty_directory_learns_of_the_leader_again(redis: Redis, directory: Directory) -> None:
    directory.decide(KEY, A)
    redis.wipe()
    assert directory.renew([(KEY, A)]) == [True]
    assert directory.decide(KEY, B).peers == ("a:1",)


def test_many_blobs_are_announced_at_once(redis: Redis, directory: Directory) -> None:
    keys = [f"sha256:{each:064x}" for each in range(100)]
    assert not directory.greet(A)
    assert directory.greet(A)
    calls = directory.calls
    directory.announce(keys, Me("a:1", ""))
    assert directory.calls == calls + 1
    assert all(directory.decide(each, B).peers == ("+a:1",) for each in keys)
    redis.wipe()
    assert not directory.greet(A)


def test_everything_ends_by_itself(redis: Redis, directory: Directory) -> None:
    for me, how in ((A, "complete"), (B, "wrong"), (C, "failed")):
        directory.decide(KEY, me, refused=["x:1"])
        directory.leave(KEY, me, how, "y:1")
    directory.decide(KEY, B)
    with redis.client() as client:
        keys = client.keys()
        assert len(keys) >= 7
        assert all(client.ttl(key) > 0 for key in keys)


# When it does not answer.


def took(call: object) -> float:
    began = time.monotonic()
    with pytest.raises(DirectoryAway):
        call()  # type: ignore[operator]
    return time.monotonic() - began


def test_refused_is_away_at_once_and_comes_back(
    redis: Redis, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY", 0.2)
    redis.kill()
    assert took(lambda: directory.decide(KEY, A)) < SLACK
    calls = directory.calls
    assert took(lambda: directory.decide(KEY, A)) < SLACK
    assert directory.calls == calls  # it was not even asked
    assert "refused" in directory.trouble
    redis.start()
    wait_until(lambda: _answers(directory))
    assert directory.trouble == ""


def _answers(directory: Directory) -> bool:
    try:
        return directory.decide(KEY, A).verdict is Verdict.LEAD
    except DirectoryAway:
        return False


def test_one_that_hangs_is_given_a_second_and_a_half(redis: Redis, directory: Directory) -> None:
    directory.use()
    directory.decide(KEY, A)
    redis.stop()
    assert 0.5 < took(lambda: directory.decide(KEY, A)) < module.MOST + SLACK
    assert took(lambda: directory.decide(KEY, A)) < SLACK
    redis.resume()
    directory.let_go()


def test_a_call_that_no_timeout_ends_is_left_alone(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the look-up of a name."""
    monkeypatch.setattr(module, "MOST", 0.1)
    monkeypatch.setattr(module, "AWAY", 0.0)
    hangs, ask = threading.Event(), directory._ask

    def hang(*arguments: object) -> object:
        hangs.wait()
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(directory, "_ask", hang)
    assert took(lambda: directory.decide(KEY, A)) < 0.1 + SLACK
    assert took(lambda: directory.decide(KEY, A)) < SLACK
    hangs.set()
    wait_until(lambda: _answers(directory))


def test_who_waits_for_the_calls_of_others_waits_while_they_are_answered(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many flights begin at once, and the directory answers all of them, one after another."""
    monkeypatch.setattr(module, "MOST", 1.0)
    monkeypatch.setattr(module, "_BRISK", 1)
    ask, answers = directory._ask, []

    def ask_slowly(*arguments: object) -> object:
        time.sleep(0.1)
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(directory, "_ask", ask_slowly)
    nodes = [Me(f"n{each}:1", f"t{each}") for each in range(15)]
    threads = [
        threading.Thread(target=lambda me=me: answers.append(directory.decide(KEY, me)))
        for me in nodes
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(answers) == len(nodes)
    assert directory.failures == 0


def test_a_lease_that_cannot_be_renewed_loses_no_other_one(
    directory: Directory, redis: Redis
) -> None:
    other = "sha256:" + "1" * 64
    directory.decide(KEY, A)
    directory.decide(other, A)
    with redis.client() as client:
        client.set(f"shmstream:{{{KEY}}}:fly", "another program's")
    assert directory.renew([(KEY, A), (other, A)]) == [True, True]
    assert directory.renew([(other, B)]) == [False]


def test_what_is_no_redis_is_away(directory: Directory, redis: Redis) -> None:
    with redis.client() as client:
        client.set(f"shmstream:{{{KEY}}}:fly", "another program's")
    with pytest.raises(DirectoryAway, match="WRONGTYPE"):
        directory.decide(KEY, A)


def test_the_connection_lasts_as_long_as_the_flights(redis: Redis, directory: Directory) -> None:
    def connections() -> int:
        with redis.client() as client:
            return len(client.client_list()) - 1

    directory.use()
    directory.use()
    directory.decide(KEY, A)
    directory.let_go()
    assert connections() == 1
    directory.let_go()
    wait_until(lambda: connections() == 0)


def test_a_forked_child_has_a_connection_of_its_own(directory: Directory) -> None:
    directory.use()
    directory.decide(KEY, A)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if directory.decide(KEY, B).peers == ("a:1",) else 2
            process.close_all()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert directory.decide(KEY, A).verdict is Verdict.LEAD
    directory.let_go()
