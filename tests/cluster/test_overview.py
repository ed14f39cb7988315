"""`shmstream cluster`: from which node each node gets its blobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shmstream.cli import command
from shmstream.cluster.directory import Directory, Me
from shmstream.cluster.overview import spreads
from tests.support.interpreters import PATIENCE
from tests.support.redis import Redis
from tests.support.stores import digest

KEY, OTHER = digest(1, 10), digest(2, 10)


def test_a_tree(redis: Redis) -> None:
    directory = Directory(redis.url, lease=PATIENCE)
    for name in "abcd":
        directory.decide(KEY, Me(f"{name}:1", name))
    directory.decide(OTHER, Me("d:1", "d"))
    directory.leave(OTHER, Me("d:1", "d"), "complete")
    directory.close()
    [one] = [each for each in spreads(redis.url) if each.key == KEY]
    assert one.leader == "a:1"
    assert one.parents == {"a:1": "upstream", "b:1": "a:1", "c:1": "a:1", "d:1": "b:1"}
    done = CliRunner().invoke(command, ["cluster", redis.url])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"{KEY}: 4 nodes in flight",
        "  upstream",
        "    a:1 leads",
        "      b:1",
        "        d:1",
        "      c:1",
    ]
    assert "1 blob in flight, 1 other blob complete, on 4 nodes" in done.stderr
    told = json.loads(CliRunner().invoke(command, ["cluster", redis.url, "--json"]).stdout)
    assert [each["holders"] for each in told if each["key"] == OTHER] == [["d:1"]]


def test_a_node_below_a_holder(redis: Redis) -> None:
    directory = Directory(redis.url, lease=PATIENCE)
    directory.decide(KEY, Me("a:1", "a"))
    directory.leave(KEY, Me("a:1", "a"), "complete")
    directory.decide(KEY, Me("b:1", "b"))
    directory.close()
    lines = CliRunner().invoke(command, ["cluster", redis.url]).stdout.splitlines()
    assert lines == [f"{KEY}: 1 node in flight, 1 node complete", "  a:1", "    b:1"]


def test_a_directory_with_a_password(redis: Redis, tmp_path: Path) -> None:
    redis.client().config_set("requirepass", "pass of redis")
    try:
        file = tmp_path / "password"
        directory = Directory(redis.url, lease=PATIENCE, password="pass of redis")
        directory.decide(KEY, Me("a:1", "a"))
        directory.close()
        for told, options in [("", []), ("another one", ["--password-file", str(file)])]:
            file.write_text(told)
            done = CliRunner().invoke(command, ["cluster", redis.url, *options])
            assert done.exit_code == 1
            assert "Redis wants its password, as in --password-file" in done.stderr
        file.write_text("pass of redis\n")
        done = CliRunner().invoke(command, ["cluster", redis.url, "--password-file", str(file)])
        assert done.stdout.splitlines() == [
            f"{KEY}: 1 node in flight",
            "  upstream",
            "    a:1 leads",
        ]
    finally:
        redis.kill()  # the next one has none


def test_no_directory(redis: Redis) -> None:
    redis.kill()
    done = CliRunner().invoke(command, ["cluster", redis.url])
    assert done.exit_code == 1
    assert "does not answer" in done.stderr


@pytest.mark.parametrize("url", ["http://x", "nonsense"])
def test_no_url_of_a_directory(url: str) -> None:
    done = CliRunner().invoke(command, ["cluster", url])
    assert done.exit_code == 2
    assert "redis://" in done.stderr
