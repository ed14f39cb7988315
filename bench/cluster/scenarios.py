"""What is done to a cluster of nodes in namespaces, and what came of it.

Each scenario begins with empty stores and an empty directory, and all nodes open the same blob at
the same time. At some moment something happens to a node, to Redis, or to the origin.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster.member import Member
from bench.cluster.network import Host, Network
from bench.report import CheckFailed
from shmstream import sweep

_SECRET = "the secret of the measurements"
_PORT = 5001


@dataclass
class Outcome:
    """What came of one scenario. Times in seconds; `bytes` in sizes of the blob."""

    name: str
    readers: int
    right: int
    gets: int
    bytes: float
    took: float
    first: float
    pause: float  # of readers whose node nothing was done to
    starts: list[float]  # where each GET began, as a part of the blob
    errors: list[str] = field(default_factory=list)


class Cluster(ExitStack):
    """A directory, an origin, and nodes of some processes each. A context manager."""

    def __init__(self, folder: Path, nodes: int, processes: int, size: int, *, log: bool) -> None:
        super().__init__()
        self.folder = folder
        self.size = size
        self._log = str(folder / "log") if log else None
        self._processes = processes
        try:
            network = self.enter_context(Network())
            self._redis_host = network.host("redis", 0)
            self._origin_host = network.host("origin", 100)
            self.hosts: list[Host] = [network.host(f"n{each}", 400) for each in range(nodes)]
            self._origin = self.enter_context(
                Member(self._origin_host.within, "origin", size=size, seed=1)
            )
            self.key: str = self._origin.hear()["key"]
            self.url = f"http://{self._origin_host.address}/blob"
            self.members: list[list[Member]] = []
            self.redis: subprocess.Popen[bytes] | None = None
            self.callback(self.stop_redis)
            self.touched: set[int] = set()  # nodes that were stopped or cut off
            self.leads: set[Member] = set()  # that lead on their host
            self.seen = 0  # requests of earlier scenarios
        except BaseException:
            self.close()
            raise

    def start_redis(self) -> None:
        """An empty directory."""
        (self.folder / "redis").mkdir(exist_ok=True)
        self.redis = subprocess.Popen(
            [
                *self._redis_host.within,
                *("redis-server", "--save", "", "--appendonly", "no", "--protected-mode", "no"),
                *("--bind", "0.0.0.0", "--dir", str(self.folder / "redis")),
            ],
            stdout=subprocess.DEVNULL,
        )
        ping = [*self._redis_host.within, "redis-cli", "ping"]
        while b"PONG" not in subprocess.run(ping, capture_output=True, check=False).stdout:
            time.sleep(0.02)

    def stop_redis(self) -> None:
        """Kill it. Idempotent."""
        if self.redis is not None:
            self.redis.kill()
            self.redis.wait()

    def begin(self, *, together: bool = True, fan: int = 2) -> None:
        """Fresh nodes, with empty stores."""
        self.end()
        self.touched.clear()
        if self.redis is None or self.redis.poll() is not None:
            self.start_redis()
        subprocess.run(
            [*self._redis_host.within, "redis-cli", "flushall"], capture_output=True, check=True
        )
        for number, host in enumerate(self.hosts):
            options = None
            if together:
                options = {
                    "url": f"redis://{self._redis_host.address}:6379",
                    "advertise": f"{host.address}:{_PORT}",
                    "secret": _SECRET,
                    "fan": fan,
                }
            store = str(self.folder / f"node{number}")
            self.members.append(
                [
                    Member(host.within, "node", folder=store, cluster=options, log=self._log)
                    for _ in range(self._processes)
                ]
            )
        for each in self.members:
            for member in each:
                member.hear()
        self.seen = len(self.requests())

    def requests(self) -> list[dict[str, Any]]:
        """What the origin was asked for, ever."""
        self._origin.say("counts")
        return list(self._origin.hear()["requests"])

    def open_all(self) -> list[tuple[int, Member, dict[str, Any]]]:
        """All processes open the blob; once each has a byte: node, process, what it said."""
        for each in self.members:
            for member in each:
                member.say([self.key, self.url])
        return [
            (number, member, member.hear())
            for number, each in enumerate(self.members)
            for member in each
        ]

    def leader(self) -> int:
        """The node that pulls from the origin."""
        client = self.requests()[self.seen]["client"]
        return next(i for i, host in enumerate(self.hosts) if host.address == client)

    def kill(self, node: int) -> None:
        """Kill all processes of a node."""
        for each in self.members[node]:
            each.close()

    def signal(self, node: int, number: int) -> None:
        """Send a signal to all processes of a node."""
        for each in self.members[node]:
            each.process.send_signal(number)

    def origin_host(self) -> Host:
        """The host of the origin."""
        return self._origin_host

    def end(self) -> None:
        """Kill all nodes, and remove what they have."""
        for each in self.members:
            for member in each:
                member.close()
        self.members.clear()
        sweep()
        for folder in self.folder.glob("node*"):
            shutil.rmtree(folder)

    def close(self) -> None:
        """End everything."""
        with suppress(AttributeError):
            self.end()
        super().close()


Event = Callable[[Cluster, random.Random], set[int]]
"""Does something to the cluster; the nodes whose readers do not count."""


def nothing(_cluster: Cluster, _chance: random.Random) -> set[int]:
    """Nothing happens."""
    return set()


def _leading_process(cluster: Cluster, _chance: random.Random) -> set[int]:
    node = cluster.leader()
    for member in [*cluster.members[node]]:
        if member in cluster.leads:
            member.close()
            cluster.members[node].remove(member)
    return set()


def _leading_node(cluster: Cluster, _chance: random.Random) -> set[int]:
    node = cluster.leader()
    cluster.kill(node)
    return {node}


def _node_in_the_middle(cluster: Cluster, chance: random.Random) -> set[int]:
    leader = cluster.leader()
    node = chance.choice([each for each in range(len(cluster.hosts)) if each != leader])
    cluster.kill(node)
    return {node}


def _stopped(cluster: Cluster, _chance: random.Random) -> set[int]:
    node = cluster.leader()
    cluster.touched.add(node)
    cluster.signal(node, signal.SIGSTOP)
    time.sleep(9)
    cluster.signal(node, signal.SIGCONT)
    return set()


def _cut_off(cluster: Cluster, _chance: random.Random) -> set[int]:
    node = cluster.leader()
    cluster.touched.add(node)
    host = cluster.hosts[node]
    host.cut()
    time.sleep(15)
    host.mend()
    return set()


def _redis_killed(cluster: Cluster, _chance: random.Random) -> set[int]:
    cluster.stop_redis()
    return set()


def _redis_hangs(cluster: Cluster, _chance: random.Random) -> set[int]:
    assert cluster.redis is not None
    cluster.redis.send_signal(signal.SIGSTOP)
    return set()


def _redis_back_then_leader(cluster: Cluster, chance: random.Random) -> set[int]:
    cluster.stop_redis()
    cluster.start_redis()
    return _leading_node(cluster, chance)


def _origin_away(cluster: Cluster, _chance: random.Random) -> set[int]:
    cluster.origin_host().cut()
    time.sleep(25)
    cluster.origin_host().mend()
    return set()


EVENTS: dict[str, Event] = {
    "the leading process is killed": _leading_process,
    "the leading node is killed": _leading_node,
    "a node in the middle is killed": _node_in_the_middle,
    "the leading node is stopped for 9 s": _stopped,
    "the leading node is cut off for 15 s": _cut_off,
    "Redis is killed": _redis_killed,
    "Redis hangs": _redis_hangs,
    "Redis comes back empty, and the leading node is killed": _redis_back_then_leader,
    "the origin is cut off for 25 s": _origin_away,
}


def run(
    cluster: Cluster,
    name: str,
    event: Event,
    chance: random.Random,
    *,
    together: bool = True,
    fan: int = 2,
) -> Outcome:
    """One scenario.

    Raises:
        CheckFailed: a process of a node that should live has ended, or says nothing.
    """
    cluster.begin(together=together, fan=fan)
    began = time.monotonic()
    opened = cluster.open_all()
    cluster.leads = {m for _, m, said in opened if said["role"] == "leads"}
    if event is not nothing:
        time.sleep(chance.uniform(0.2, 0.6) * cluster.size * 8 / 100e6)
    lost = event(cluster, chance)
    told = [
        (number, member.hear())
        for number, each in enumerate(cluster.members)
        for member in each
        if number not in lost
    ]
    if not told:
        raise CheckFailed("nobody is left")
    requests = cluster.requests()[cluster.seen :]
    if cluster.redis is not None and cluster.redis.poll() is None:
        cluster.redis.send_signal(signal.SIGCONT)
    return Outcome(
        name,
        readers=len(told),
        right=sum(each["right"] for _, each in told),
        gets=len(requests),
        bytes=sum(each["sent"] for each in requests) / cluster.size,
        took=max(each["end"] for _, each in told) - began,
        first=max(said["first"] for _, _, said in opened),
        pause=max(each["pause"] for number, each in told if number not in cluster.touched),
        starts=[round(each["start"] / cluster.size, 2) for each in requests],
        errors=sorted({each["error"] for _, each in told if each["error"]}),
    )
