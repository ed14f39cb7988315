"""One scenario with one peer, once: started fresh, measured, ended; a `Sample`."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.closing import Closing
from bench.crew import Crew
from bench.peers.clients import Answer, Ask, Ending, ask_all
from bench.peers.origin import Blob, Origin
from bench.peers.peer import Peer, Proxy
from bench.peers.profile import Profile
from bench.peers.scenarios import Scenario
from bench.report import GIB, KIB, CheckFailed

PROCESSES = 2
"""That the clients are in."""

HASHED, PROFILED = 0, -1
"""Rounds that do not count: those of `Sample.memory` and of `Sample.shares`."""

_PATIENCE = 120.0  # s
_SETTLE = 0.1  # s; what a proxy does after its last byte counts, too
_LOOK = 0.05  # s between two looks at the memory
_WARM_UP = 8  # blobs, ...
_WARM_UP_SIZE = 64 * KIB  # ... and bytes of each


@dataclass(frozen=True)
class Sample:
    """What one scenario cost with one peer. Times are seconds.

    Attributes:
        scenario, peer: their names.
        turn: HASHED for the round in which every byte is hashed and memory is looked at, which both
            take time from the peer; PROFILED for that in which `perf` looks; from 1 on those that
            are measured.
        cpu: of all the peer's processes.
        wall: from the first ask to the last byte.
        first: the first byte's time of the first client of a blob, the median.
        late: the same for all others, the median; None: there are none.
        worst: the longest of these.
        requests: how many asks there were.
        served: bytes that the clients got.
        gets: requests to the origin.
        sent: bytes that the origin sent.
        origin_cpu: of the origin.
        memory: bytes of all the peer's processes (PSS), the most there was; None: nobody looked.
        shares: the part of the CPU time that each kind of work took (profile.py); None: as above.
    """

    scenario: str
    peer: str
    turn: int
    cpu: float
    wall: float
    first: float
    late: float | None
    worst: float | None
    requests: int
    served: int
    gets: int
    sent: int
    origin_cpu: float
    memory: int | None = None
    shares: dict[str, float] | None = None

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds for a GiB served."""
        return self.cpu / (self.served / GIB)

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds for 1,000 requests."""
        return self.cpu / self.requests * 1000


class Stage:
    """Where everything is measured: an origin, clients, and folders for those in between."""

    def __init__(self, folder: Path, origin: Origin, crew: Crew) -> None:
        self.origin = origin
        self.crew = crew
        self._folder = folder
        self._warm_up = [origin.make(_WARM_UP_SIZE) for _ in range(_WARM_UP)]
        self._turns = 0

    def place(self) -> Path:
        """A path for a folder that does not exist yet."""
        self._turns += 1
        return self._folder / f"turn-{self._turns}"

    def warm(self, proxy: Proxy, blobs: Iterable[Blob] = ()) -> None:
        """Have the proxy do all that it does but once, and get these blobs.

        Raises:
            CheckFailed: it does not give one.
        """
        queues = [[Ask(blob.path())] for blob in self._warm_up for _ in range(2)]
        for index, blob in enumerate(blobs):
            queues[index % len(queues)].append(Ask(blob.path()))
        told = ask_all(self.crew, PROCESSES, proxy.port, queues, hashing=False, patience=_PATIENCE)
        for answer in (each for answers in told for each in answers):
            if answer.ending != Ending.WHOLE:
                raise CheckFailed(f"warming up failed: {answer}: {proxy.said()}")


class Watch(Closing):
    """The most memory that a proxy has, from `start` to the end of the block."""

    def __init__(self, proxy: Proxy) -> None:
        self.most = 0
        self._proxy = proxy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            self.most = max(self.most, self._proxy.memory())

    def close(self) -> None:
        """Stop looking. Idempotent."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()


def measure(
    stage: Stage, peer: Peer, scenario: Scenario, blobs: Sequence[Blob], turn: int
) -> Sample:
    """Start the peer, have the clients ask, end it; for what `turn` means see `Sample`.

    Raises:
        CheckFailed: a client did not get every byte, or got a wrong one.
        NotServing: the peer does not start.
    """
    folder = stage.place()
    origin = stage.origin
    try:
        with (
            Proxy(peer, folder, origin.port) as proxy,
            Watch(proxy) as watch,
            ExitStack() as stack,
        ):
            profile = stack.enter_context(Profile()) if turn == PROFILED else None
            stage.warm(proxy, blobs if scenario.is_warm else ())
            origin.begin()
            before: list[float] = []

            def begin() -> None:
                before[:] = [proxy.cpu(), origin.cpu()]
                if turn == HASHED:
                    watch.start()
                if profile is not None:
                    profile.start()

            queues, late = _deal(scenario, blobs)
            told = ask_all(
                stage.crew, PROCESSES, proxy.port, queues,
                hashing=turn == HASHED, patience=_PATIENCE, before=begin,
            )  # fmt: skip
            lines = origin.requests()
            time.sleep(_SETTLE)
            cpu, origin_cpu = proxy.cpu() - before[0], origin.cpu() - before[1]
            pids = {each.pid for each in proxy.processes()}
            shares = None if profile is None else profile.shares(pids)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    answers = [answer for answers in told for answer in answers]
    _check(scenario, queues, answers, turn)
    waits = [each.first or 0.0 for each in answers]
    firsts = [wait for wait, is_late in zip(waits, late, strict=True) if not is_late]
    lates = [wait for wait, is_late in zip(waits, late, strict=True) if is_late]
    return Sample(
        scenario=scenario.name,
        peer=peer.name,
        turn=turn,
        cpu=cpu,
        wall=max(each.began + each.took for each in answers) - min(each.began for each in answers),
        first=median(firsts),
        late=median(lates) if lates else None,
        worst=max(lates) if lates else None,
        requests=len(answers),
        served=sum(each.count for each in answers),
        gets=sum(line.method == "GET" for line in lines),
        sent=sum(line.sent for line in lines),
        origin_cpu=origin_cpu,
        memory=watch.most or None,
        shares=shares,
    )


def _deal(scenario: Scenario, blobs: Sequence[Blob]) -> tuple[list[list[Ask]], list[bool]]:
    """What is asked on each connection; and of all asks, in that order, whether they are late."""
    asks = [
        (Ask(blob.path(scenario.rate), at=index * scenario.apart), index > 0)
        for index in range(scenario.clients)
        for blob in blobs
    ]
    count = len(asks) if scenario.connections is None else scenario.connections
    dealt = [asks[index::count] for index in range(count)]
    return (
        [[ask for ask, _ in queue] for queue in dealt],
        [is_late for queue in dealt for _, is_late in queue],
    )


def _check(
    scenario: Scenario, queues: Sequence[Sequence[Ask]], answers: Sequence[Answer], turn: int
) -> None:
    asked = [ask for queue in queues for ask in queue]
    for ask, answer in zip(asked, answers, strict=True):
        if answer.ending != Ending.WHOLE or answer.count != scenario.size:
            raise CheckFailed(f"{ask.path}: {answer}")
        if turn == HASHED and answer.digest != ask.path.rpartition("/")[2]:
            raise CheckFailed(f"{ask.path}: wrong bytes: {answer}")
