"""The directory: a real Redis that refuses, hangs, is wiped, and comes back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shmstream.cluster import directory as module
from shmstream.cluster.directory import Decision, Directory, DirectoryAway, Had, Me, Verdict
from shmstream.cluster.scripts import SUSPECT_FOR
from shmstream.system import process
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.redis import Redis

KEY = "sha256:" + "0" * 64
A, B, C, D = (Me(f"{each}:1", f"t{each}") for each in "abcd")
CONSUMER = Me("", "t")


@pytest.fixture
def directory(redis: Redis) -> Iterator[Directory]:
    made = Directory(redis.url, lease=PATIENCE)
    yield made
    made.close()


def test_one_leads_and_the_others_get_a_tree(directory: Directory) -> None:
    assert directory.decide(KEY, A)[:4] == (Verdict.LEAD, (), "", "")
    assert directory.decide(KEY, A).verdict is Verdict.LEAD  # again: it still has the lease
    nodes = [Me(f"n{each}:1", f"t{each}") for each in range(6)]
    parents = [directory.decide(KEY, each).peers[0] for each in nodes]
    assert parents == ["a:1", "a:1", "n0:1", "n0:1", "n1:1", "n1:1"]


def test_commands_are_packed_as_the_library_packs_them(directory: Directory) -> None:
    commands = [("SET", "node:é", 1, "EX", 3600, "GET"), (module._Script("return 1"), 0, "", -1)]
    words = [tuple(module._in_words(each)) for each in commands]
    packed = b"".join(directory._maker().pack_commands(words))
    assert module._packed(commands) == packed


def test_holders_come_first_and_are_asked_for_all_of_it(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.leave(KEY, A, "complete")
    assert directory.decide(KEY, B).peers == ("+a:1",)
    assert directory.decide(KEY, CONSUMER).peers[0] == "+a:1"
    directory.leave(KEY, A, "evicted")
    assert directory.decide(KEY, B).verdict is Verdict.LEAD


def test_a_node_that_was_silent_is_asked_when_it_has_all(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.decide(KEY, B)
    directory.leave(KEY, A, "complete")
    assert directory.decide(KEY, B, avoid=["a:1"]).peers == ("+a:1",)
    assert directory.decide(KEY, B, avoid=["+a:1"]).verdict is Verdict.LEAD


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
    assert directory.decide(KEY, B, avoid=["a:1"])[:4] == (Verdict.WAIT, (), "a:1", "")


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
    before = directory.decide(KEY, C).at
    directory.leave(KEY, B, "wrong", f"a:1|{before}|600")  # B got them from A ...
    directory.leave(KEY, C, "wrong", f"b:1|{before}|600")  # ... and C from B
    assert directory.decide(KEY, C).verdict is Verdict.LEAD  # A is bad, so its lease is void
    directory.decide(KEY, B)
    assert "b:1" in directory.decide(KEY, D, avoid=["c:1"]).peers


def test_a_node_whose_parent_was_deceived_learns_it(directory: Directory) -> None:
    directory.decide(KEY, A)
    told = directory.decide(KEY, C)
    directory.leave(KEY, B, "wrong", "")
    assert directory.decide(KEY, C, had=Had(0, "b:1", told.at)).verdict is Verdict.WRONG
    later = directory.decide(KEY, C, had=Had(0, "a:1", told.at))
    assert later.verdict is Verdict.PEERS
    again = directory.decide(KEY, C, had=Had(0, "b:1", later.at))  # what B gave since then is good
    assert again.verdict is Verdict.PEERS


def test_who_tries_again_gets_no_bytes_of_the_time_before(directory: Directory) -> None:
    directory.decide(KEY, A)
    for each in (B, C, D):
        told = directory.decide(KEY, each)
    had = Had(told.generation, "a:1", told.at)
    assert directory.decide(KEY, D, had=had).generation == 0
    directory.leave(KEY, B, "wrong", f"a:1|{told.at}|600", generation=0)
    again = Me("b:1", "another flight")
    assert directory.decide(KEY, again)[:3] == (Verdict.LEAD, (), "a:1")  # A is bad, the others old
    assert directory.decide(KEY, again).generation == 1
    assert directory.decide(KEY, D, had=had).peers[0] == "b:1"  # those may go on with better ones
    directory.leave(KEY, C, "wrong", f"a:1|{told.at}|600", generation=0)  # of the first generation
    last = directory.decide(KEY, Me("c:1", "another flight"))
    assert (last.generation, last.peers) == (1, ("b:1",))


def test_a_leader_that_has_bytes_of_the_upstream_only_goes_on_for_all(directory: Directory) -> None:
    directory.decide(KEY, A)
    told = directory.decide(KEY, B)
    directory.leave(KEY, B, "wrong", f"x:1|{told.at}|600", generation=0)
    assert directory.decide(KEY, C)[:2] == (Verdict.PEERS, ("a:1",))
    taken_over = Me("a:1", "of another process of the node")
    assert directory.decide(KEY, taken_over, had=Had(-1)).verdict is Verdict.LEAD
    assert directory.decide(KEY, C)[:2] == (Verdict.PEERS, ("a:1",))


def test_a_leader_that_has_bytes_of_others_does_not(directory: Directory) -> None:
    directory.decide(KEY, A)
    told = directory.decide(KEY, B)
    had = Had(0, "a:1", told.at)
    assert directory.decide(KEY, B, refused=["a:1"], had=had).verdict is Verdict.LEAD
    directory.leave(KEY, C, "wrong", f"a:1|{told.at}|600", generation=0)
    assert directory.decide(KEY, C).verdict is Verdict.LEAD
    assert directory.renew([(KEY, B)]) == [False]
    assert directory.decide(KEY, B, had=had).peers == ("c:1",)


def test_a_parent_that_may_have_lied_is_asked_by_that_node_no_more(directory: Directory) -> None:
    directory.decide(KEY, A)
    directory.leave(KEY, A, "complete")
    told = directory.decide(KEY, B)
    directory.leave(KEY, B, "wrong", f"a:1|{told.at}|0")
    assert directory.decide(KEY, B).verdict is Verdict.LEAD
    assert "+a:1" in directory.decide(KEY, C).peers
    directory.leave(KEY, B, "complete")
    directory.leave(KEY, B, "evicted")
    assert "+a:1" in directory.decide(KEY, B).peers  # it is no quarrel for ever


def test_a_suspect_is_asked_by_nobody_for_a_while(directory: Directory, redis: Redis) -> None:
    directory.decide(KEY, A)
    directory.leave(KEY, A, "complete")
    told = directory.decide(KEY, CONSUMER)
    directory.leave(KEY, CONSUMER, "wrong", f"a:1|{told.at}|{SUSPECT_FOR}", told.generation)
    assert directory.decide(KEY, C).verdict is Verdict.LEAD
    with redis.client() as client:
        until = client.zscore(f"shmstream:{{{KEY}}}:bad", "a:1")
        assert until is not None
        assert until <= client.time()[0] + SUSPECT_FOR + 1
        assert client.zrange(f"shmstream:{{{KEY}}}:deceived", 0, -1) == []


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
        directory.leave(KEY, me, how, "y:1|0|600")
    directory.decide(KEY, B)
    with redis.client() as client:
        keys = client.keys()
        assert len(keys) >= 9
        assert all(client.ttl(key) > 0 for key in keys)


# When it does not answer.


def is_asked(directory: Directory) -> bool:
    """Whether a call that fails was made at all. A call that hangs fails the test."""
    before = directory.calls
    with pytest.raises(DirectoryAway):
        directory.decide(KEY, A)
    return directory.calls > before


def test_refused_is_away_at_once_and_comes_back(
    redis: Redis, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3600.0)
    monkeypatch.setattr(module, "AWAY", 3600.0)
    redis.kill()
    assert is_asked(directory)
    assert not is_asked(directory)
    assert "refused" in directory.trouble
    redis.start()
    directory._not_before = 0.0  # the time for which it is not asked is over
    wait_until(lambda: _answers(directory))
    assert directory.trouble == ""


def _answers(directory: Directory) -> bool:
    try:
        return directory.decide(KEY, A).verdict is Verdict.LEAD
    except DirectoryAway:
        return False


def test_one_that_hangs_is_given_a_second_and_a_half(
    redis: Redis, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY", 3600.0)
    assert module.MOST == 1.5
    directory.use()
    directory.decide(KEY, A)
    redis.stop()
    began = time.monotonic()
    assert is_asked(directory)
    assert time.monotonic() - began > 0.5
    assert not is_asked(directory)
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
    assert is_asked(directory)
    assert not is_asked(directory)
    hangs.set()
    wait_until(lambda: _answers(directory))


def test_all_that_wait_for_the_directory_are_asked_together(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many flights begin at once while the first answer takes long."""
    ask, may_go, sizes = directory._ask, threading.Event(), []

    def ask_late(commands: Any, until: float) -> list[object]:
        sizes.append(len(commands))
        assert may_go.wait(PATIENCE)
        return ask(commands, until)

    monkeypatch.setattr(module, "MOST", 60.0)
    monkeypatch.setattr(directory, "_ask", ask_late)
    answers: list[Decision] = []
    callers = [
        threading.Thread(
            target=lambda n=n: answers.append(directory.decide(KEY, Me(f"n{n}:1", "t")))
        )
        for n in range(40)
    ]

    callers[0].start()
    wait_until(lambda: sizes == [1])
    for each in callers[1:]:
        each.start()
    wait_until(lambda: len(directory._queue) == 39)
    may_go.set()
    for each in callers:
        each.join(PATIENCE)
    assert len(answers) == 40
    assert sizes == [1, 39]
    assert (directory.calls, directory.failures) == (40, 0)


def test_those_that_wait_for_one_that_hangs_are_told_with_it(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, may_go, began = directory._ask, threading.Event(), threading.Event()

    def hang(*arguments: Any) -> list[object]:
        began.set()
        assert may_go.wait(PATIENCE)
        return ask(*arguments)

    monkeypatch.setattr(module, "MOST", 0.3)
    monkeypatch.setattr(module, "AWAY", 3600.0)
    monkeypatch.setattr(directory, "_ask", hang)
    failures: list[DirectoryAway] = []

    def decide() -> None:
        try:
            directory.decide(KEY, A)
        except DirectoryAway as error:
            failures.append(error)

    callers = [threading.Thread(target=decide) for _ in range(5)]
    callers[0].start()
    assert began.wait(PATIENCE)
    for each in callers[1:]:
        each.start()
    for each in callers:
        each.join(PATIENCE)
    assert len(failures) == 5
    may_go.set()
    wait_until(lambda: not directory._is_asking)
    assert directory._queue == []


def test_a_script_that_redis_has_lost_is_told_again(directory: Directory, redis: Redis) -> None:
    directory.decide(KEY, A)
    with redis.client() as client:
        client.script_flush()
    assert directory.renew([(KEY, A), ("sha256:" + "1" * 64, B)]) == [True, True]


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
    wait_until(lambda: connections() == 1)  # Redis may still have one that a test before has closed
    directory.let_go()
    wait_until(lambda: connections() == 0)


def test_a_connection_that_redis_has_closed_is_made_anew(
    redis: Redis, directory: Directory
) -> None:
    directory.use()
    directory.decide(KEY, A)
    with redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: len(client.client_list()) == 1)
    assert directory.decide(KEY, B).peers == ("a:1",)
    assert directory.failures == 0
    directory.let_go()


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
