"""Which nodes have which blobs, complete or in flight, as the directory knows it: for people.

It reads key by key, so it may show a state that never was. No node decides by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shmstream.cluster import scripts

_PATIENCE = 5.0  # s


@dataclass(frozen=True)
class Spread:
    """One digest in the cluster.

    Attributes:
        key: the digest.
        leader: the node that has the lease to pull from the upstream; empty if none has.
        parents: for each node that has it in flight, the one that it was told to ask first: a node,
            or `upstream`, or `nobody`.
        holders: the nodes that have told that they have the complete blob; the newest 64.
    """

    key: str
    leader: str
    parents: dict[str, str]
    holders: tuple[str, ...]


def spreads(url: str, password: str | None = None) -> list[Spread]:
    """What the directory behind `url` knows, sorted by digest. Blocks for some seconds at most.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: that is no URL of Redis.
        ConnectionError: the directory does not answer, or is none; the message tells why.
    """
    from shmstream.cluster.directory import load_redis

    redis = load_redis()
    options = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE, "protocol": 2}
    try:
        with redis.Redis.from_url(
            url, password=password, decode_responses=True, **options
        ) as client:
            names = client.scan_iter(match=scripts.name_of("*", "*"), count=1000)
            keys = {each.removeprefix(scripts.PREFIX).partition("}")[0] for each in names}
            return [each for key in sorted(keys) if (each := _of(client, key)) is not None]
    except redis.AuthenticationError as error:
        told = f"Redis wants its password, as in --password-file: {error}"
        raise ConnectionError(told) from error
    except redis.RedisError as error:
        raise ConnectionError(f"the directory of the cluster does not answer: {error}") from error


def _of(client: Any, key: str) -> Spread | None:
    names = {each: scripts.name_of(key, each) for each in scripts.KEYS}
    nodes = client.zrange(names["fly"], 0, -1)
    told = client.hgetall(names["from"])
    holders = tuple(client.zrange(names["have"], 0, -1))
    if not nodes and not holders:
        return None
    parents = {node: told.get(node, "nobody").removeprefix("+") for node in nodes}
    return Spread(key, client.get(names["lead"]) or "", parents, holders)
