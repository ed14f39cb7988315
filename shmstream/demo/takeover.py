"""The second act of `shmstream demo`, and the fourth: the process that pulls a blob is killed.

In the second act, several interpreters call `Store.open(key, url)` for one key at the same time.
One of them leads and downloads from the demo's origin; the others follow. In the middle the leader
is killed with SIGKILL. One of the followers takes over and asks the origin for the rest.

In the fourth act, three interpreters are nodes of a cluster, each with a store and an address of
its own on this host; a real Redis is their directory. One node pulls the blob from the origin, the
others get it from that node while it arrives. When it is killed, another one pulls the rest.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection

from shmstream import Cluster, Role, Store
from shmstream.cluster.account import of_node
from shmstream.demo.child import Child, DemoFailed
from shmstream.demo.pages import Origin, Page
from shmstream.demo.readers import Part, Reader, Readers
from shmstream.demo.reading import Orders, read_blob
from shmstream.demo.screen import Board, Fact
from shmstream.demo.stage import Stage, pace
from shmstream.units import amount

_SECONDS = 4.0  # how long an act takes unless a rate is given
_NODES = 3


def run(stage: Stage) -> tuple[Readers, list[Fact], str]:
    """Play the second act, with at least 2 processes."""
    origin, orders = _serve(stage)
    store = Store(stage.folder)
    stage.say("The leader is killed", "bold")
    stage.say(f"origin    {orders.url}, {pace(origin.rate)}")
    stage.say(f"flight    {stage.count} interpreters call store.open(key, url); one leads\n")
    orders = replace(orders, store=store.folder)
    part = Part("process", read_blob, orders, stage.size, (stage.digest,))
    play = _Play(stage, origin, Readers(stage.undo, part, stage.count), [store])
    Board(stage.undo, stage.console, "published", play.readers).play(play.look)
    kill = "{}, the leader, at {}; {} took over and went on at {}"
    facts = play.facts(kill, f"a blob of {amount(stage.size)}")
    return play.readers, facts, "of a blob that was pulled once, though its leader was killed"


def run_nodes(stage: Stage) -> tuple[Readers, list[Fact], str]:
    """Play the fourth act."""
    origin, orders = _serve(stage)
    redis, *addresses = [_address(stage.undo) for _ in range(_NODES + 1)]
    directory = Child(stage.undo, partial(_serve_directory, redis, str(stage.folder)))
    stage.say("A cluster loses the node that pulls", "bold")
    stage.say(f"origin    {origin.url}, {pace(origin.rate)}")
    stage.say(f"nodes     {_NODES}, each with a store and an address; redis-server at {redis}\n")
    part = Part("node", read_blob, orders, stage.size, (stage.digest,))
    nodes, secret = Readers(stage.undo, part, _NODES), secrets.token_hex(16)
    play = _NodePlay(stage, origin, nodes, [Store(stage.folder / each.name) for each in nodes])
    for node, store, address in zip(nodes, play.stores, addresses, strict=True):
        cluster = Cluster(f"redis://{redis}", address, secret)
        node.part = replace(part, orders=replace(orders, store=store.folder, cluster=cluster))
        play.names[address], node.told = node.name, "asks the directory"
    if not directory.receive():
        raise DemoFailed("redis-server has ended before it listened")
    Board(stage.undo, stage.console, "upstream", nodes).play(play.look)
    for store in play.stores:
        store.gc(partial_age=0)  # what the killed node had
    kill = "{}, which pulled, at {}; {} pulled the rest, from {} on"
    moral = "of a blob that three nodes pulled once, though the node that pulled it was killed"
    return nodes, play.facts(kill, f"{_NODES} nodes"), moral


def _serve(stage: Stage) -> tuple[Origin, Orders]:
    """The origin of the blob, and orders to get it there."""
    rate = stage.size / _SECONDS if stage.rate is None else stage.rate
    origin = Origin(stage.undo, {"/blob": Page(stage.source)}, rate)
    return origin, Orders(stage.digest, url=f"{origin.url}/blob", chunk_size=stage.chunk_size)


def _address(undo: ExitStack) -> str:
    """An address of this host that no other program takes; `undo` gives it back."""
    place = undo.enter_context(socket.socket())  # never listens
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        place.setsockopt(socket.SOL_SOCKET, option, 1)
    place.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{place.getsockname()[1]}"


def _serve_directory(address: str, folder: str, demo: Connection) -> None:
    """The work of a child: an empty Redis, for as long as the demo lives."""
    host, _, port = address.partition(":")
    keeps_nothing = ["--save", "", "--appendonly", "no", "--dir", folder]
    command = ["redis-server", "--bind", host, "--port", port, *keeps_nothing]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            demo.send(any(b"accept connections" in line for line in server.stdout or ()))
            demo.recv()
        finally:
            server.kill()


@dataclass
class _Play:
    """A blob that is pulled once: the reader that pulls it is killed, and another one goes on."""

    stage: Stage
    origin: Origin
    readers: Readers
    stores: Sequence[Store]  # of the readers
    pulled: list[Reader] = field(default_factory=list)  # in turn; the first is killed
    published: int = 0

    def look(self) -> tuple[int, str]:
        """See how far the blob is, and kill in the middle; returns what is published."""
        for flight in [flight for store in self.stores for flight in store.flights()]:
            self.published = max(self.published, flight.published)
            self.stage.note(flight.stream)
            if len(self.stores) == 1:  # else each reader has its own flight, and lags behind none
                self.readers.see(flight.followers)
        pulling = self.pulling()
        if self.pulled:
            self.pulled += [each for each in pulling if each not in self.pulled]
        elif pulling and self.origin.gets and self.published >= self.stage.size // 2:
            self.pulled = pulling[:1]
            self.pulled[0].kill()
        is_complete = any(self.stage.digest in each for each in self.stores)
        return self.stage.size if is_complete else self.published, ""

    def pulling(self) -> list[Reader]:
        """The readers that pull from the origin; none before one of them may be killed."""
        are_all_here = all(each.has_joined for each in self.readers)
        return [each for each in self.readers if are_all_here and each.report.role is Role.LEADS]

    def facts(self, kill: str, receiver: str) -> list[Fact]:
        """What was found. `receiver` names the nodes or the blob that the origin's bytes were for.

        `kill` has blanks: which reader was killed, at which position, which one went on, and where.
        """
        digest, requests = self.stage.digest, self.origin.gets
        told = f"no {self.readers[0].part.kind} was killed, or not one of the others went on"
        if good := bool(self.pulled) and len(requests) == 2:
            killed, heir, *_ = [*(each.name for each in self.pulled), "another one"]
            offset = amount(requests[1].start)
            told = kill.format(killed, amount(self.pulled[0].position), heir, offset)
        sent = amount(sum(each.sent for each in requests))
        facts = [
            Fact("kill", told, good),
            Fact("pause", f"{self.readers.longest_pause}, the longest of any survivor"),
            Fact("origin", f"{sent} sent in {len(requests)} requests, for {receiver}", good),
        ]
        files = [each.path(digest) for each in self.stores if digest in each]
        return facts + [self.stage.check_file(each) for each in files]


@dataclass
class _NodePlay(_Play):
    """As in the second act. `names` has the name of each node, by its address."""

    names: dict[str, str] = field(default_factory=lambda: {"upstream": "the upstream"})

    def look(self) -> tuple[int, str]:
        """As in the second act. Nodes end together, because an ended node gives nothing."""
        alive = [each for each in self.readers if each.exit_code is None]
        if all(each.report.event == "finished" for each in alive):
            for each in alive:
                each.send("end")
        return super().look()

    def pulling(self) -> list[Reader]:
        """The nodes that pull from the upstream; none before each node gets bytes from a parent."""
        parents, digest = {}, self.stage.digest
        for node, store in zip(self.readers, self.stores, strict=True):
            account = None if node.exit_code is not None else of_node(store.folder)
            if account is not None and digest in account.pulls:
                parents[node] = account.pulls[digest].parent
                node.told = f"gets it from {self.names.get(parents[node], 'nobody yet')}"
        is_tiny = self.stage.size <= self.stage.chunk_size  # then nothing comes before the end
        are_all_here = len(parents) == len(self.readers) and (is_tiny or all(parents.values()))
        is_time = are_all_here or self.pulled
        return [node for node, parent in parents.items() if is_time and parent == "upstream"]
