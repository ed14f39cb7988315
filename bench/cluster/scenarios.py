"""What is done to a cluster of nodes in namespaces, and what came of it.

Each scenario begins with empty stores and an empty directory, and all nodes open the same blobs at
the same time, or one after another. At some moment something happens to a node, to Redis, or to the
origin.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import nginx
from bench.cluster.member import Member
from bench.cluster.network import Host, Network
from bench.report import MIB, CheckFailed
from shmstream import sweep

RATE, ORIGIN_RATE = 400, 100
"""Mbit/s of a node's link, and of the origin's."""
_SECRET = "the secret of the measurements"
_PORT = 5001
_NGINX = """
    proxy_cache_path {folder}/cache keys_zone=blobs:10m max_size=4g inactive=1h use_temp_path=off;
    server {{
        listen 80;
        location / {{
            proxy_pass http://{origin};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache blobs;
            proxy_cache_valid 200 206 1h;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }}
    }}
"""


def limit(size: int) -> float:
    """Seconds that so many bytes take on the origin's link, at least."""
    return size * 8 / (ORIGIN_RATE * 1e6)


@dataclass(frozen=True)
class Scenario:
    """One scenario; `nodes`, `processes` and `size` of 0 are those that were asked for."""

    name: str
    event: Event | None = None
    together: bool = True
    fan: int = 2
    nodes: int = 0
    size: int = 0  # bytes of a blob
    blobs: int = 1
    apart: float = 0.0  # s; from one node to the next
    cache: str = ""  # in front of all nodes: `nginx` or `shmstream`
    lies: bool = False  # the first node does
    evicts: bool = False  # the first node has it all, and then no more
    fails: bool = False  # readers are to get an error
    repeats: bool = False  # is worth many rounds
    processes: int = 0  # of a node
    is_held: bool = False  # the origin answers when all nodes wait for it
    is_second: bool = False  # the same processes have pulled another blob before


@dataclass
class Outcome:
    """What came of one scenario. Times in seconds; `bytes` in sizes of all blobs."""

    name: str
    readers: int
    right: int
    cut: int  # readers that got an error, also those that tried again
    gets: int
    bytes: float
    took: float
    spread: float  # from the first end to the last one
    first: float
    pause: float  # of readers whose node nothing was done to
    calls: float | None  # of the directory, for each node and blob; None if it does not say
    limit: float
    starts: list[float]  # where each GET began, as a part of the blob
    hop: tuple[float, float] | None = None  # what a hop of a chain costs: first byte, end
    fails: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether all readers got what they should."""
        return self.right == (0 if self.fails else self.readers)


class Cluster(ExitStack):
    """A directory, an origin, and nodes of some processes each. A context manager."""

    def __init__(self, folder: Path, nodes: int, *, log: bool) -> None:
        super().__init__()
        self.folder = folder
        self._log = str(folder / "log") if log else None
        self.members: list[list[Member]] = []
        self.redis: subprocess.Popen[bytes] | None = None
        self.touched: set[int] = set()  # nodes that were stopped or cut off
        self.leads: set[Member] = set()  # that lead on their host
        self.seen = 0  # requests of earlier scenarios
        try:
            network = self.enter_context(Network())
            self._redis_host = network.host("redis", 0)
            self.origin_host: Host = network.host("origin", ORIGIN_RATE)
            self._cache_host = network.host("cache", RATE)
            self.hosts: list[Host] = [network.host(f"n{each}", RATE) for each in range(nodes)]
            self._origin = self.enter_context(Member(self.origin_host.within, "origin"))
            self._origin.hear()
            self.callback(self.stop_redis)
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
        while "PONG" not in self.ask_redis("ping"):
            time.sleep(0.02)

    def ask_redis(self, *words: str) -> str:
        """What Redis answers; empty if it does not."""
        command = [*self._redis_host.within, "redis-cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def stop_redis(self) -> None:
        """Kill it. Idempotent."""
        if self.redis is not None:
            self.redis.kill()
            self.redis.wait()

    def calls(self) -> int | None:
        """How many calls Redis has had since the scenario began."""
        if self.redis is None or self.redis.poll() is not None:
            return None
        stats = self.ask_redis("info", "commandstats")
        found = re.search(r"cmdstat_evalsha:calls=(\d+)", stats)
        return int(found[1]) if found else 0

    def begin(self, scenario: Scenario, nodes: int, processes: int) -> None:
        """Fresh nodes, with empty stores."""
        self.end()
        self.touched.clear()
        if self.redis is None or self.redis.poll() is not None:
            self.start_redis()
        for words in (("flushall",), ("config", "resetstat")):
            self.ask_redis(*words)
        for number, host in enumerate(self.hosts[:nodes]):
            options = None
            if scenario.together:
                options = {
                    "url": f"redis://{self._redis_host.address}:6379",
                    "advertise": f"{host.address}:{_PORT}",
                    "secret": _SECRET,
                    "fan": scenario.fan,
                }
            arguments = {
                "folder": str(self.folder / f"node{number}"),
                "cluster": options,
                "warm": f"http://{self.origin_host.address}/0/0",
                "log": self._log,
                "lies": scenario.lies and number == 0,
            }
            made = [Member(host.within, "node", **arguments) for _ in range(processes)]
            self.members.append(made)
        for each in self.members:
            for member in each:
                member.hear()
        self.seen = len(self.requests())

    def start_cache(self, undo: ExitStack, kind: str) -> str:
        """The address of a cache of that kind in front of all nodes; `undo` ends it."""
        folder, host = self.folder / "node-cache", self._cache_host
        folder.mkdir()
        if kind == "nginx":
            http = _NGINX.format(folder=folder, origin=self.origin_host.address)
            command = [*host.within, *nginx.command(folder, http)]
            cache = subprocess.Popen(command)
            undo.callback(cache.wait)
            undo.callback(cache.terminate)
        else:
            origin = f"http://{self.origin_host.address}"
            folder_ = str(folder / "store")
            undo.enter_context(Member(host.within, "cache", folder=folder_, upstream=origin))
        probe = ["timeout", "1", "bash", "-c", f": > /dev/tcp/{host.address}/80"]
        until = time.monotonic() + 30
        while subprocess.run([*host.within, *probe], capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                raise CheckFailed(f"{kind} does not listen")
            time.sleep(0.05)
        return host.address

    def keys(self, size: int, count: int) -> list[tuple[str, str]]:
        """Keys and paths of so many blobs of the origin."""
        found = []
        for seed in range(1, count + 1):
            self._origin.say([size, seed])
            found.append((self._origin.hear()["key"], f"/{size}/{seed}"))
        return found

    def requests(self) -> list[dict[str, Any]]:
        """What the origin was asked for, ever."""
        self._origin.say("counts")
        return list(self._origin.hear()["requests"])

    def hold(self, *, holds: bool) -> None:
        """Whether the origin keeps those waiting that ask."""
        self._origin.say("hold" if holds else "release")
        self._origin.hear()

    def open_all(
        self, pairs: list[tuple[str, str]], apart: float = 0.0, *, first: int = 0
    ) -> list[tuple[int, Member, dict[str, Any]]]:
        """All processes open the blobs, from node `first` on: node, process, what it said."""
        for each in self.members[first:]:
            for member in each:
                member.say(pairs)
            time.sleep(apart)
        self.hold(holds=False)
        return [
            (number, member, member.hear())
            for number, each in enumerate(self.members)
            for member in each
            if number >= first
        ]

    def pull_before(self, pair: tuple[str, str]) -> None:
        """All processes pull this blob; what it cost is not counted."""
        self.open_all([pair])
        for each in self.members:
            for member in each:
                member.hear()
        self.ask_redis("config", "resetstat")
        self.seen = len(self.requests())

    def leader(self) -> int:
        """The node that pulls from the origin."""
        client = self.requests()[self.seen]["host"]
        return next(i for i, host in enumerate(self.hosts) if host.address == client)

    def kill(self, node: int) -> None:
        """Kill all processes of a node."""
        for each in self.members[node]:
            each.close()

    def signal(self, node: int, number: int) -> None:
        """Send a signal to all processes of a node."""
        for each in self.members[node]:
            each.process.send_signal(number)

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
    node = chance.choice([each for each in range(len(cluster.members)) if each != leader])
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


def _redis_wiped(cluster: Cluster, _chance: random.Random) -> set[int]:
    cluster.ask_redis("flushall")
    return set()


def _redis_back_then_leader(cluster: Cluster, chance: random.Random) -> set[int]:
    cluster.stop_redis()
    cluster.start_redis()
    return _leading_node(cluster, chance)


def _origin_away(cluster: Cluster, _chance: random.Random) -> set[int]:
    cluster.origin_host.cut()
    time.sleep(25)
    cluster.origin_host.mend()
    return set()


def _origin_gone(cluster: Cluster, _chance: random.Random) -> set[int]:
    cluster.origin_host.cut()
    return set()


WHOLE = (
    Scenario("each node for itself", together=False),
    Scenario("one nginx in front of all nodes", together=False, cache="nginx"),
    Scenario("one shmstream in front of all nodes", together=False, cache="shmstream"),
    Scenario("together, fan 1", fan=1),
    Scenario("together, fan 2"),
    Scenario("together, fan 4", fan=4),
)
"""Nothing happens: these are drawn."""
SCENARIOS = (
    *WHOLE,
    Scenario("together, 16 nodes, 32 MiB", nodes=16, size=32 * MIB),
    Scenario("16 nodes, then another blob", nodes=16, size=32 * MIB, is_second=True),
    Scenario("together, then another blob", is_second=True),
    Scenario("nodes join 4 s apart", apart=4.0),
    Scenario("a chain of waiting nodes", fan=1, processes=1, apart=0.5, is_held=True),
    Scenario("64 blobs of 1 MiB over 4 nodes", nodes=4, size=MIB, blobs=64),
    Scenario("the leading process is killed", _leading_process, repeats=True),
    Scenario("the leading node is killed", _leading_node, repeats=True),
    Scenario("a node in the middle is killed", _node_in_the_middle, repeats=True),
    Scenario("Redis is killed", _redis_killed, repeats=True),
    Scenario("Redis hangs", _redis_hangs),
    Scenario("Redis is wiped", _redis_wiped),
    Scenario("Redis comes back empty, and the leading node is killed", _redis_back_then_leader),
    Scenario("the leading node is stopped for 9 s", _stopped),
    Scenario("the leading node is cut off for 15 s", _cut_off),
    Scenario("the leading node gives wrong bytes", lies=True),
    Scenario("the only holder has evicted the blob", evicts=True),
    Scenario("the origin is cut off for 25 s", _origin_away),
    Scenario(
        "the origin is gone for good, one node alone", _origin_gone,
        together=False, nodes=1, fails=True,
    ),
    Scenario("the origin is gone for good", _origin_gone, fails=True),
)  # fmt: skip


def run(
    cluster: Cluster,
    scenario: Scenario,
    chance: random.Random,
    nodes: int,
    processes: int,
    size: int,
) -> Outcome:
    """One scenario, with so many nodes, and blobs of `size` bytes, unless it says other numbers.

    Raises:
        CheckFailed: a process of a node that should live has ended, or says nothing.
    """
    nodes, size = scenario.nodes or nodes, scenario.size or size
    processes = scenario.processes or processes
    total = size * scenario.blobs
    with ExitStack() as undo:
        undo.callback(cluster.origin_host.mend)
        cluster.hold(holds=scenario.is_held)
        cluster.begin(scenario, nodes, processes)
        host = cluster.origin_host.address
        if scenario.cache:
            host = cluster.start_cache(undo, scenario.cache)
        keys = cluster.keys(size, scenario.blobs + scenario.is_second)
        pairs = [(key, f"http://{host}{path}") for key, path in keys]
        if scenario.is_second:
            cluster.pull_before(pairs.pop())
        began = time.monotonic()
        opened: list[tuple[int, Member, dict[str, Any]]] = []
        told: list[tuple[int, dict[str, Any]]] = []
        if scenario.lies or scenario.evicts:  # the first node comes before the others
            opened, told = _first(cluster, pairs, leaves=scenario.evicts)
        opened += cluster.open_all(pairs, scenario.apart, first=1 if opened else 0)
        cluster.leads = {m for _, m, said in opened if said["role"] == "leads"}
        lost: set[int] = set()
        if scenario.event is not None:
            time.sleep(chance.uniform(0.2, 0.6) * limit(total))
            lost = scenario.event(cluster, chance)
        told += [
            (number, member.hear())
            for number, each in enumerate(cluster.members)
            for member in each
            if number not in lost and not (scenario.evicts and number == 0)
        ]
        if cluster.redis is not None and cluster.redis.poll() is None:
            cluster.redis.send_signal(signal.SIGCONT)
        return _outcome(cluster, scenario, began, [said for _, _, said in opened], told, total)


def _first(
    cluster: Cluster, pairs: list[tuple[str, str]], *, leaves: bool
) -> tuple[list[tuple[int, Member, dict[str, Any]]], list[tuple[int, dict[str, Any]]]]:
    """The first node opens the blobs; if it `leaves`, it has them to the end, and then no more."""
    for member in cluster.members[0]:
        member.say(pairs)
    opened = [(0, member, member.hear()) for member in cluster.members[0]]
    if not leaves:
        return opened, []
    told = [(0, member.hear()) for member in cluster.members[0]]
    cluster.members[0][0].say("evict")
    cluster.members[0][0].hear()
    return opened, told


def _outcome(
    cluster: Cluster,
    scenario: Scenario,
    began: float,
    opened: list[dict[str, Any]],
    told: list[tuple[int, dict[str, Any]]],
    total: int,
) -> Outcome:
    if not told:
        raise CheckFailed("nobody is left")
    requests = cluster.requests()[cluster.seen :]
    ends = sorted(each["end"] for _, each in told)
    firsts = sorted(each["first"] - each["began"] for each in opened)
    nodes, calls, hop = len(cluster.members), cluster.calls(), None
    if scenario.is_held and nodes > 1:
        begins = sorted(each["first"] for each in opened)
        hop = (begins[-1] - begins[0]) / (nodes - 1), (ends[-1] - ends[0]) / (nodes - 1)
    return Outcome(
        scenario.name,
        readers=len(told),
        right=sum(each["right"] for _, each in told),
        cut=sum(bool(each["errors"]) for _, each in told),
        gets=len(requests),
        bytes=sum(each["sent"] for each in requests) / total,
        took=ends[-1] - began,
        spread=ends[-1] - ends[0],
        first=firsts[-1],
        pause=max((e["pause"] for number, e in told if number not in cluster.touched), default=0.0),
        calls=None if calls is None or not scenario.together else calls / nodes / scenario.blobs,
        limit=limit(total),
        starts=[round(each["start"] / total, 2) for each in requests],
        hop=hop,
        fails=scenario.fails,
        errors=sorted({error for _, each in told for error in each["errors"]}),
    )
