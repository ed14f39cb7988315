"""The fourth act of `shmstream demo`: three nodes of a cluster pull once, and one is killed.

Each node is an interpreter with a store and an address of its own on this host; a real Redis is
their directory. One node pulls the blob from the demo's origin, the others get it from that node
while it arrives. In the middle it is killed. Another one pulls the rest, and gives it on.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from shmstream.cluster.account import of_node
from shmstream.cluster.cluster import Cluster
from shmstream.demo.child import Child
from shmstream.demo.origin import Origin, Page
from shmstream.demo.readers import Part, Reader, Readers
from shmstream.demo.reading import Orders, read_blob
from shmstream.demo.screen import Board, Fact, conclude
from shmstream.demo.stage import Stage, pace
from shmstream.store import Store
from shmstream.units import amount

_SECONDS = 4.0  # how long it takes unless a rate is given
_COUNT = 3
_TICK = 0.02  # s; from one look at the nodes to the next


def run(stage: Stage) -> bool:
    """Show the act; returns whether everything went as it should.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    rate = stage.size / _SECONDS if stage.rate is None else stage.rate
    with ExitStack() as undo:
        origin, secret = Origin(undo, {"/blob": Page(stage.source)}, rate), secrets.token_hex(16)
        redis, *addresses = [_address(undo) for _ in range(_COUNT + 1)]
        directory = Child(undo, _serve_directory)
        directory.send((redis.rpartition(":")[2], str(stage.folder)))
        clusters = [Cluster(f"redis://{redis}", each, secret) for each in addresses]
        stage.say("A cluster loses the node that pulls", "bold")
        stage.say(f"origin    {origin.url}, {pace(rate)}")
        stage.say(
            f"nodes     {_COUNT}, each with a store and an address; redis-server at {redis}\n"
        )
        orders = Orders(stage.digest, url=f"{origin.url}/blob", chunk_size=stage.chunk_size)
        part = Part("node", read_blob, orders, stage.size, (stage.digest,))
        readers = Readers(undo, part, _COUNT)
        play = _Play(stage, origin, readers, addresses)
        for reader, cluster, store in zip(readers, clusters, play.stores, strict=True):
            own = replace(orders, store=store.folder, cluster=cluster)
            reader.part = replace(part, orders=own)
        directory.receive()  # it is about to listen
        play.perform(Board(undo, stage.console, "upstream", readers))
        sent, asked = sum(each.sent for each in origin.requests), len(origin.requests)
        told = f"{amount(sent)} sent in {asked} requests, for {_COUNT} nodes"
        pause = Fact("pause", f"{readers.longest_pause}, the longest of any survivor")
        facts = [play.of_kill(), pause, Fact("origin", told, asked == 2), *play.files()]
    facts += [stage.left_over([directory.pid, *(each.pid for each in readers)])]
    moral = "of a blob that three nodes pulled once, though the node that pulled it was killed"
    return conclude(stage.console, readers, facts, moral)


def _address(undo: ExitStack) -> str:
    """An address of this host that no other program takes; `undo` gives it back."""
    place = undo.enter_context(socket.socket())  # never listens
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        place.setsockopt(socket.SOL_SOCKET, option, 1)
    place.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{place.getsockname()[1]}"


def _serve_directory(demo: Connection) -> None:
    """The work of a child: an empty Redis, for as long as the demo lives."""
    port, folder = demo.recv()
    keeps_nothing = ["--save", "", "--appendonly", "no", "--dir", folder]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", port, *keeps_nothing]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            for line in server.stdout or ():
                if b"accept connections" in line:
                    break
            demo.send("ready")
            demo.recv()
        finally:
            server.kill()


class _Play:
    """What the nodes do, and the kill."""

    def __init__(self, stage: Stage, origin: Origin, nodes: Readers, addresses: list[str]) -> None:
        self._stage = stage
        self._origin = origin
        self._nodes = nodes
        self._names = {"upstream": "the upstream"}
        self._names.update(zip(addresses, (each.name for each in nodes), strict=True))
        self.stores = [Store(stage.folder / f"node{each.number}") for each in nodes]
        self._victim: Reader | None = None
        self._heirs: list[Reader] = []

    def perform(self, shown: Board) -> None:
        """Play the act to its end."""
        for each in self._nodes:
            each.told = "asks the directory"
        self._nodes.let_in(0)
        while not self._nodes.are_gone:
            self._nodes.listen(_TICK)
            if all(each.report.has_all for each in self._nodes if each.killed is None):
                for each in self._nodes:
                    each.send("end")  # not before: a node that ends gives nothing to others
            shown.show(self._look())
        for store in self.stores:
            store.gc(partial_age=0)  # what the killed node had
        shown.show(self._look(), final=True)

    def _look(self) -> int:
        """See where each node gets its bytes from, and kill; how far the first of them is."""
        have, parents = [0], {}
        for node, store in zip(self._nodes, self.stores, strict=True):
            for flight in store.flights():
                have.append(flight.published)
                self._stage.note(flight.stream)
            account = None if node.exit_code is not None else of_node(store.folder)
            if account is not None and self._stage.digest in account.pulls:
                parents[node] = account.pulls[self._stage.digest].parent
                node.told = f"gets it from {self._names.get(parents[node], 'nobody yet')}"
        leads = [node for node, parent in parents.items() if parent == "upstream"]
        is_tiny = self._stage.size <= self._stage.chunk_size  # then nothing comes before the end
        are_all_here = len(parents) == len(self._nodes) and (is_tiny or all(parents.values()))
        is_time = max(have) >= self._stage.size // 2 and are_all_here
        if self._victim is None and is_time and leads and self._origin.requests:
            [self._victim, *_] = leads
            self._victim.kill()
        elif self._victim is not None:
            self._heirs += [node for node in leads if node not in (*self._heirs, self._victim)]
        return self._stage.size if any(self._stage.digest in s for s in self.stores) else max(have)

    def of_kill(self) -> Fact:
        """Which node was killed, and which one went on."""
        if self._victim is None or len(self._origin.requests) != 2:
            return Fact("kill", "no node was killed, or not one of the others went on", good=False)
        killed = f"{self._victim.name}, which pulled, at {amount(self._victim.position)}"
        heir = [*(each.name for each in self._heirs), "another one"][0]
        went_on = f"{heir} pulled the rest, from {amount(self._origin.requests[-1].offset)} on"
        return Fact("kill", f"{killed}; {went_on}")

    def files(self) -> list[Fact]:
        """Whether each survivor has the blob in its store."""
        digest, pairs = self._stage.digest, zip(self._nodes, self.stores, strict=True)
        return [
            self._stage.check_file(Path(store.path(digest)))
            for node, store in pairs
            if node.killed is None and digest in store
        ]
