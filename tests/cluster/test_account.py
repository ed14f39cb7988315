"""What a node tells of its part in the cluster: parents, children, bytes, the directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from shmstream import Event, EventKind
from shmstream.cli import command
from shmstream.cluster import account
from shmstream.cluster import directory as module
from shmstream.cluster.account import Account, Ledger, Pull, of_node
from shmstream.cluster.directory import Directory, DirectoryAway, Me
from tests.support.cluster import Nodes, Reading
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.redis import Redis
from tests.support.stores import digest

SIZE = 3_000_000
KEY = digest(1, SIZE)
HALF = SIZE // 2


def test_parents_children_and_bytes(nodes: Nodes, origin: Origin) -> None:
    """As another process sees them: `top`."""
    origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=HALF)
    leader, follower = nodes.store(), nodes.store()
    lead, follow = (str(each._cluster.advertise) for each in (leader._node, follower._node))  # type: ignore[union-attr]
    readings = [Reading(leader, KEY, origin.url("/blob"))]
    wait_until(lambda: bool(leader.flights()) and leader.flights()[0].published > HALF // 2)
    readings.append(Reading(follower, KEY, origin.url("/blob")))
    wait_until(lambda: (told := of_node(follower.folder)) is not None and told.from_peers > 0)
    wait_until(lambda: (told := of_node(leader.folder)) is not None and told.given > 0)
    giving, getting = of_node(leader.folder), of_node(follower.folder)
    assert giving is not None
    assert getting is not None
    assert giving.pulls[KEY].parent == "upstream"
    assert giving.children == {KEY: (follow,)}
    assert (giving.from_peers, giving.pulls[KEY].from_peers) == (0, 0)
    assert getting.pulls[KEY].parent == lead
    assert getting.from_upstream == 0
    assert getting.calls > 0

    def top(folder: str, *options: str) -> str:
        return (
            CliRunner()
            .invoke(command, ["top", "--store", folder, "--interval", "0.1", *options])
            .stdout
        )

    lines = top(leader.folder, "--once").splitlines()
    assert lines[1].startswith(f"node {lead}: 0 bytes from peers, ")
    assert lines[1].endswith(" 0 failed, away for 0.0 s")
    assert f"  child    {follow}" in lines
    assert any(line.startswith("  parent   upstream, 0 bytes from peers, ") for line in lines)
    [told] = json.loads(top(follower.folder, "--json"))
    assert (told["parent"], told["children"], told["from_upstream"]) == (lead, [], 0)
    origin.release()
    assert all(each.is_right(KEY) for each in readings)
    wait_until(lambda: (told := of_node(leader.folder)) is not None and told.given == SIZE)
    assert nodes.counts[leader.folder].bytes[EventKind.GIVEN] == SIZE
    wait_until(lambda: (told := of_node(leader.folder)) is not None and told.is_idle)
    leader.close()
    assert of_node(leader.folder) is None


def _write(folder: str) -> None:
    ledger = Ledger(folder, lambda: Account("a:1", {KEY: Pull("b:1", 1, 2)}))
    ledger.wake()
    wait_until(lambda: of_node(folder) is not None)
    os.kill(os.getpid(), 9)


def test_an_account_of_a_killed_process_does_not_count(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            _write(str(tmp_path))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    [left] = (tmp_path / "cluster" / "accounts").iterdir()
    assert of_node(str(tmp_path)) is None
    ledger = Ledger(str(tmp_path), lambda: Account("a:1", calls=3))
    ledger.wake()
    wait_until(lambda: not left.exists())
    wait_until(lambda: (told := of_node(str(tmp_path))) is not None and told.calls == 3)
    ledger.close()
    assert list((tmp_path / "cluster" / "accounts").iterdir()) == []


def test_processes_of_a_node_are_summed() -> None:
    one = Account("a:1", {"x": Pull("b:1")}, {"y": ("c:1",)}, 1, 2, 3, 4, 5, 6.0, "")
    two = Account("a:1", {"z": Pull("b:1")}, {"y": ("d:1",)}, 1, 2, 3, 4, 5, 7.0, "gone")
    both = one + two
    assert set(both.pulls) == {"x", "z"}
    assert both.children == {"y": ("c:1", "d:1")}
    assert (both.from_peers, both.from_upstream, both.given) == (2, 4, 6)
    assert (both.calls, both.failures, both.away, both.trouble) == (8, 10, 7.0, "gone")


def test_what_is_half_written_is_read_again_or_left_out(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), Account)
    ledger.wake()
    wait_until(lambda: of_node(str(tmp_path)) == Account())
    [path] = account._paths(str(tmp_path))
    good = Path(path).read_bytes()
    for wrong in (good[:-1], b"", b"00000000\n{}", account._checksum(b"{}") + b"\n{}"):
        Path(path).write_bytes(wrong)
        assert of_node(str(tmp_path)) is None
    ledger.close()


def test_the_time_for_which_the_directory_was_away(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY", 0.05)
    told: list[Event] = []
    directory = Directory(redis.url, tell=told.append)
    me = Me("a:1", "t")
    directory.decide(KEY, me)
    redis.kill()
    with pytest.raises(DirectoryAway):
        directory.decide(KEY, me)
    redis.start()
    before = directory.away

    def is_back() -> bool:
        try:
            directory.decide(KEY, me)
        except DirectoryAway:
            return False
        return True

    wait_until(is_back)
    kinds = [each.kind for each in told]
    assert kinds == [EventKind.ASKED, EventKind.UNANSWERED, EventKind.ASKED]
    assert told[1].seconds == 0
    assert told[2].seconds == directory.away > before
    directory.close()
