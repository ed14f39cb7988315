"""What goes wrong, as data, and what became of the clients.

Unless a fault says otherwise, 8 clients ask for the same 32 MiB, one each 0.1 s, while the origin
gives 16 MiB/s; so all are there when half of it is. One more asks when all is over. Whoever
has no ending after `PATIENCE` hangs.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

import psutil

from bench.peers.clients import Answer, Ask, Ending, ask_all
from bench.peers.measure import Stage
from bench.peers.origin import Blob, Origin
from bench.peers.peer import Peer, Proxy
from bench.peers.upstream import Failing
from bench.report import KIB, MIB, CheckFailed

PATIENCE = 15.0  # s
_AFTERWARDS = 10.0  # s; the last client's patience
_LATER = 1.0  # s after all is over it asks
_RATE = 16 * MIB
_APART = 0.1  # s


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: for commands and files.
        title: for people.
        failing: how the origin fails.
        returns_after: seconds after its death the origin is there again; None: it is not.
        killed_at: seconds after the beginning when the process is killed that fills the cache.
        room: bytes that the cache may take; None: plenty.
        asks: how the clients differ from the usual, by their number.
        can_give: whether the origin can still give the rest, so that nobody need suffer.
        size: of the blob, in bytes.
        clients: how many ask.
    """

    name: str
    title: str
    failing: Failing = field(default_factory=Failing)
    returns_after: float | None = None
    killed_at: float | None = None
    room: int | None = None
    asks: dict[int, Callable[[Ask], Ask]] = field(default_factory=dict)
    can_give: bool = True
    size: int = 32 * MIB
    clients: int = 8


def faults(size: int = 32 * MIB, clients: int = 8) -> list[Fault]:
    """All of them, with so many clients that want so many bytes."""
    half = size // 2 + 12345  # where no slice and no chunk ends
    usual = Fault("", "", size=size, clients=clients)
    return [
        replace(
            usual,
            name="dies-returns",
            title="the origin dies at half, and is back a second later",
            failing=Failing(dies_at=half),
            returns_after=1.0,
        ),
        replace(
            usual,
            name="dies",
            title="the origin dies at half, for good",
            failing=Failing(dies_at=half),
            can_give=False,
        ),
        replace(
            usual,
            name="short",
            title="the origin ends at half as if that were all, once",
            failing=Failing(short_at=half),
        ),
        replace(
            usual,
            name="lies",
            title="the origin gives a wrong byte",
            failing=Failing(lies_at=half),
            can_give=False,
        ),
        replace(
            usual,
            name="killed",
            title="the process that fills the cache is killed",
            killed_at=half / _RATE,
        ),
        replace(
            usual,
            name="leaves",
            title="the first client leaves early",
            asks={0: lambda ask: replace(ask, leaves_at=size // 8)},
        ),
        replace(
            usual,
            name="slow",
            title="the first client reads 100 KiB/s",
            asks={0: lambda ask: replace(ask, pace=100 * KIB)},
        ),
        replace(
            usual,
            name="range",
            title="the second client wants only the last quarter",
            asks={1: lambda ask: replace(ask, start=size * 3 // 4)},
        ),
        replace(
            usual, name="full", title="the cache has room for half of the blob", room=size // 2
        ),
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of the clients of one peer in one fault. Times are seconds.

    Attributes:
        fault, peer: their names.
        right: clients that got what they wanted, every byte right.
        cut: clients that got less, and were told so by the end of the connection.
        wrong: clients that got something else, and take it for right.
        hang: clients that wait for more.
        refused: clients that were told an error instead of any byte.
        own: of those cut, how many were connected to the process that was killed.
        extra: bytes that the origin sent beyond the blob, once.
        pause: the longest that a client waited for its next byte, or its first.
        afterwards: what became of the client that asked when all was over.
        note: what else there is to say.
    """

    fault: str
    peer: str
    right: int
    cut: int
    wrong: int
    hang: int
    refused: int
    own: int
    extra: int
    pause: float
    afterwards: str
    note: str = ""

    @property
    def suffering(self) -> int:
        """Clients that did not get what they wanted."""
        return self.cut + self.wrong + self.hang + self.refused

    @property
    def verdict(self) -> str:
        """What became of all of them, in some words."""
        counts = {
            "right": self.right,
            "cut": self.cut,
            "wrong bytes": self.wrong,
            "hang": self.hang,
            "refused": self.refused,
        }
        total = sum(counts.values())
        told = {word: "all" if count == total else count for word, count in counts.items() if count}
        return ", ".join(f"{count} {word}" for word, count in told.items())


def suffer(stage: Stage, peer: Peer, fault: Fault) -> Outcome:
    """Have it go wrong, and see.

    Raises:
        NotServing: the peer does not start.
    """
    origin = stage.origin
    folder = stage.place()
    blob = origin.make(fault.size)
    origin.start(fault.failing)
    asks = [Ask(blob.path(_RATE), at=index * _APART) for index in range(fault.clients)]
    for index, change in fault.asks.items():
        asks[index] = change(asks[index])
    try:
        with Proxy(peer, folder, origin.port, fault.room) as proxy:
            stage.warm(proxy)
            origin.begin()
            told, killed = _go_wrong(stage, proxy, fault, asks)
            sent = sum(line.sent for line in origin.requests())
            last = ask_all(
                stage.crew, 1, proxy.port, [[Ask(blob.path(_RATE), at=_LATER)]],
                hashing=True, patience=_AFTERWARDS,
            )  # fmt: skip
        answers = [answer for [answer] in told]
        fates = [
            _fate(origin, blob, ask, answer) for ask, answer in zip(asks, answers, strict=True)
        ]
        counts = Counter(fates)
        return Outcome(
            fault=fault.name,
            peer=peer.name,
            right=counts["right"],
            cut=counts["cut"],
            wrong=counts["wrong"],
            hang=counts["hangs"],
            refused=counts["refused"],
            own=sum(
                answer.port in killed
                for answer, fate in zip(answers, fates, strict=True)
                if fate == "cut"
            ),
            extra=max(sent - fault.size, 0),
            pause=max(max(each.pause, each.first or each.took) for each in answers),
            afterwards=_fate(origin, blob, Ask(blob.path()), last[0][0]),
            note=_note(asks, answers),
        )
    finally:
        origin.start()
        origin.remove(blob)
        shutil.rmtree(folder, ignore_errors=True)


def _fate(origin: Origin, blob: Blob, ask: Ask, answer: Answer) -> str:
    """What became of a client, in a word."""
    start = ask.start if ask.start is not None and answer.status == 206 else 0
    is_right = answer.digest == origin.digest(blob, start, answer.count)
    match answer.ending:
        case Ending.WHOLE if is_right and start + answer.count == blob.size:
            return "right"
        case Ending.LEFT if is_right:
            return "right"
        case Ending.WHOLE | Ending.LEFT:
            return "wrong"
        case other:
            return str(other)


def _note(asks: list[Ask], answers: list[Answer]) -> str:
    for ask, answer in zip(asks, answers, strict=True):
        if ask.start is not None and answer.first is not None:
            what = "the range" if answer.status == 206 else "all of it"
            return f"{what} after {answer.first:.1f} s"
    return ""


def _go_wrong(
    stage: Stage, proxy: Proxy, fault: Fault, asks: list[Ask]
) -> tuple[list[list[Answer]], set[int]]:
    """What clients were told while it went wrong; the ports of those whom a killed process had.

    It is done here, and a thread waits for the clients: what a thread starts would end with it.
    """
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            ask_all, stage.crew, 1, proxy.port, [[ask] for ask in asks],
            hashing=True, patience=PATIENCE, before=begun.set,
        )  # fmt: skip
        begun.wait()
        over = time.monotonic() + PATIENCE
        killed: set[int] = set()
        if fault.killed_at is not None:
            time.sleep(fault.killed_at)
            killed = _kill(stage.origin, proxy)
        if fault.returns_after is not None:
            while stage.origin.is_running and time.monotonic() < over:
                time.sleep(0.01)
            time.sleep(fault.returns_after)
            stage.origin.start()
        return asking.result(), killed


def _kill(origin: Origin, proxy: Proxy) -> set[int]:
    """Kill the process that is getting the blob; the ports of the clients that it has."""
    asking = {line.port for line in origin.active()}
    for process in proxy.processes():
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("tcp4")
            if any(each.laddr and each.laddr.port in asking for each in connections):
                process.kill()
                return {each.raddr.port for each in connections if each.raddr}
    raise CheckFailed(f"nobody is getting the blob: {asking}")
