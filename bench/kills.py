"""Workers of `shmstream serve` are killed, and what becomes of their clients; what that costs.

    python -m bench.kills [--kills 1000] [--every 1] [--rounds 5] [--json FILE] [--quick]
                          [--dir FOLDER]

    kills    32 clients keep their connections to a registry of 4 workers: 16 ask for 4 KiB five
             times a second, 16 for 32 MiB at 2 MiB/s each: as much as two processors bear besides
             the workers that start. The store has room for three quarters of the large blobs, so
             that downloads go on all the time. A random worker is killed by
             SIGKILL as soon as `--every` seconds are over and at least 3 workers serve. Before, the
             same clients ask for some seconds without a kill, to show the pauses of this machine.
             skopeo and containerd, where they are installed, pull an image all the time, whose
             layers are two of the large blobs; a pull that fails counts as cut
    cost     8 clients ask for 4 KiB, of one worker: its processor time for a hit, with and without
             `--no-keep`, in turns; each round counts with the medians of its turns

Each client compares every byte, and counts the heads of responses that it gets. A pause is the
longest time in which a client that waits for bytes gets none.

The exit code is 1 if a client was cut or got a wrong byte. With `--quick` everything is tried and
nothing is meant. Needs the dependency group `bench` and nginx.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.closing import Closing
from bench.crew import Crew, CrewFailed, Gate, shared_words
from bench.origin import Origin
from bench.pulls import Pulls, make_image
from bench.registry import Registry, publish
from bench.report import (
    KIB,
    MIB,
    CheckFailed,
    Goal,
    Options,
    Row,
    as_json,
    machine,
    progress,
    table,
)  # fmt: skip
from bench.server import NotServing, Port
from shmstream import sweep

WORKERS = 4
_PROCESSES = 4  # of clients
_SMALL, _LARGE, _RATE = 4 * KIB, 32 * MIB, 2 * MIB
_BLOBS = 8  # large ones
_APART = 0.2  # s; between small requests of one client
_TURNS, _HITS = 40, 10  # turns of a round, hits of each client in a turn
_WARM, _CALM = 15.0, 120.0  # s; the first downloads of all blobs at one time do not count
_BETWEEN = 4.0  # s; from pull to pull of each client of images
_PATIENCE = 60.0  # s
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


@dataclass(frozen=True)
class Told:
    """What the clients of one process have seen; `pause` in seconds."""

    whole: int = 0
    cut: int = 0
    wrong: int = 0
    mixed: int = 0
    pause: float = 0.0

    def __add__(self, other: Told) -> Told:
        return Told(
            self.whole + other.whole,
            self.cut + other.cut,
            self.wrong + other.wrong,
            self.mixed + other.mixed,
            max(self.pause, other.pause),
        )


def main() -> int:
    """Measure, print the table, write the JSON; the exit code."""
    chosen = _arguments()
    kills = 10 if chosen.quick else chosen.kills
    rounds = 2 if chosen.quick else chosen.rounds
    with tempfile.TemporaryDirectory(prefix="shmstream-kills-", dir=chosen.dir) as folder:
        options = Options(Path(folder), _LARGE, rounds, chosen.quick, pin=False)
        facts = machine(options.folder)
        try:
            with Origin(options.folder / "origin") as origin, Crew(_PROCESSES) as crew:
                rows = _measure_kills(options, origin, crew, kills, chosen.every)
                rows.append(_measure_cost(options, origin))
        except (CheckFailed, CrewFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()
        print(table(facts, rows))
        if chosen.json is not None:
            chosen.json.write_text(as_json(facts, options, rows), encoding="utf-8")
    return 1 if any(row.case in _NONE and row.ours for row in rows) else 0


_NONE = ("clients cut", "pulls of images that failed", "wrong answers", "mixed heads")


def _arguments() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between them (1)")
    parser.add_argument("--rounds", type=int, default=5, help="of the cost (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="only try it out")
    parser.add_argument("--dir", metavar="FOLDER", help="where blobs are made and removed again")
    return parser.parse_args()


def _make(origin: Origin, name: str, size: int) -> tuple[str, bytes]:
    """A blob of the origin, as a registry has it: its path, its bytes."""
    path = publish(origin, name, size, "bench/kills")
    return path, (origin.folder / path[1:]).read_bytes()


# The clients.


class Cut(Exception):
    """The connection ended within a response, or before it."""


class Client:
    """One connection, which it keeps as long as it can."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = bytearray(256 * KIB)
        self.told = Told()
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), _PATIENCE)
        connection.settimeout(_PATIENCE)
        return connection

    def ask(self, path: str, data: bytes, rate: float) -> None:
        """Ask for a blob, and compare it."""
        try:
            good, mixed, pause = self._ask(path, memoryview(data), rate)
        except (Cut, ConnectionError, TimeoutError):
            self.told += Told(cut=1)
            self._socket.close()
            self._socket = self._connect()
        else:
            self.told += Told(1, 0, not good, mixed, pause)

    def _ask(self, path: str, data: memoryview, rate: float) -> tuple[bool, bool, float]:
        """Whether the answer was right, whether another head was in it, the longest pause."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        begun = time.perf_counter()
        head, pause = b"", 0.0
        while b"\r\n\r\n" not in head:
            count, waited = self._read()
            pause = max(pause, waited)
            head += self._buffer[:count]
        head, _, first = head.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        is_good = head.startswith(b"HTTP/1.1 200 ") and data[: len(first)] == first
        is_good = is_good and length is not None and int(length[1]) == len(data)
        mixed = (head + first[:1000]).count(b"HTTP/1.1 ") > 1
        have = len(first)
        while have < len(data):
            count, waited = self._read()
            pause = max(pause, waited)
            is_good = is_good and data[have : have + count] == self._buffer[:count]
            have += count
            if rate and (ahead := have / rate - (time.perf_counter() - begun)) > 0:
                time.sleep(min(ahead, 0.1))
        return is_good and have == len(data), mixed, pause

    def _read(self) -> tuple[int, float]:
        begun = time.perf_counter()
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise Cut
        return count, time.perf_counter() - begun

    def close(self) -> None:
        """Leave."""
        self._socket.close()


def _ask_all(
    port: int, small: list[tuple[str, bytes]], large: list[tuple[str, str]], stop: str,
    index: int, gate: Gate,
) -> Told:  # fmt: skip
    """The clients of one process, until the first word of the file `stop` is not 0."""
    sys.setswitchinterval(0.001)
    stopped = shared_words(stop)
    kept = [(path, Path(place).read_bytes()) for path, place in large]
    clients = [Client(port) for _ in range(8)]

    def go(number: int) -> None:
        chance = random.Random(index * 100 + number)
        while not stopped[0]:
            if number % 2:
                clients[number].ask(*chance.choice(kept), _RATE)
            else:
                clients[number].ask(*chance.choice(small), 0)
                time.sleep(_APART)

    gate()
    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return sum((client.told for client in clients), Told())


# What is measured.


def _measure_kills(
    options: Options, origin: Origin, crew: Crew, kills: int, every: float
) -> list[Row]:
    small = [_make(origin, f"small-{index}", _SMALL) for index in range(_BLOBS)]
    large = [_make(origin, f"large-{index}", _LARGE)[0] for index in range(_BLOBS)]
    places = [(path, str(origin.folder / path[1:])) for path in large]
    layers = [path.rpartition("/")[2] for path in large[:2]]
    make_image(origin, "bench/kills", "v1", dict.fromkeys(layers, _LARGE))
    stop = options.folder / "stop"
    stop.write_bytes(bytes(8))
    with ExitStack() as undo:
        port = undo.enter_context(Port())
        most = str(_LARGE * _BLOBS * 3 // 4)
        registry = undo.enter_context(
            Registry(
                options.folder, origin.url(""), port, "--workers", str(WORKERS), "--max-bytes", most
            )
        )
        jobs = [
            partial(_ask_all, port.number, small, places, str(stop), index)
            for index in range(_PROCESSES)
        ]
        killer = threading.Thread(target=_kill, args=(registry, kills, every, str(stop)))
        with Pulls(options.folder, port.number, "bench/kills:v1", _BETWEEN) as pulls:
            for seconds in (3.0, 3.0) if options.quick else (_WARM, _CALM):
                calm = threading.Thread(target=_stop, args=(seconds, str(stop)))
                quiet = sum(crew.run(jobs, calm.start), Told())
                calm.join()
                stop.write_bytes(bytes(8))
            told = sum(crew.run(jobs, killer.start), Told())
            killer.join()
            pulled = pulls.stop()
        if quiet.cut or quiet.wrong:
            raise CheckFailed("clients are cut, or get wrong bytes, although no worker is killed")
        if not registry.is_running:
            raise CheckFailed("the registry has ended")
    notes = {"kills": float(kills), "answers": float(told.whole)}
    notes |= {f"pulls by {each.client}": float(each.right) for each in pulled}
    failed = sum(len(each.failures) for each in pulled)
    none = Goal(0, at_least=False, of_ratio=False)
    return [
        Row("kills", "clients cut", "clients", told.cut, goal=none, notes=notes),
        Row("kills", "pulls of images that failed", "pulls", failed, goal=none, notes=notes),
        Row("kills", "wrong answers", "answers", told.wrong, goal=none, notes=notes),
        Row("kills", "mixed heads", "answers", told.mixed, goal=none, notes=notes),
        Row("kills", "longest pause, beside without kills", "ms", told.pause * 1e3,
            quiet.pause * 1e3, notes=notes),
        Row("kills", "what the kills add to it", "ms", (told.pause - quiet.pause) * 1e3,
            goal=Goal(100, at_least=False, of_ratio=False), notes=notes),
    ]  # fmt: skip


def _stop(seconds: float, stop: str) -> None:
    time.sleep(seconds)
    shared_words(stop)[0] = 1


def _kill(registry: Registry, kills: int, every: float, stop: str) -> None:
    chance = random.Random(0)
    stopped = shared_words(stop)
    try:
        for number in range(kills):
            time.sleep(every * chance.uniform(0.5, 1.5))
            serving = registry.wait_for(WORKERS - 1, _PATIENCE)
            chance.choice(serving).send_signal(signal.SIGKILL)
            if number % 100 == 99:
                progress(f"{number + 1} workers killed")
        time.sleep(1.0)
    finally:
        stopped[0] = 1


def _measure_cost(options: Options, origin: Origin) -> Row:
    """The processor time of a small hit. Both registries run, and take turns every few hits."""
    path, data = _make(origin, "hit", _SMALL)
    ours, others = [], []
    with ExitStack() as undo:
        kept, plain = (
            undo.enter_context(_Hit(options, origin, option, path, data))
            for option in ("--keep", "--no-keep")
        )
        for _ in range(options.rounds):
            costs: dict[_Hit, list[float]] = {kept: [], plain: []}
            for turn in range(4 if options.quick else _TURNS):
                for hit in (kept, plain)[:: 1 if turn % 2 else -1]:
                    costs[hit].append(hit.cost())
            ours.append(median(costs[kept]))
            others.append(median(costs[plain]))
    ratios = [mine / its for mine, its in zip(ours, others, strict=True)]
    case, goal = "a small hit, beside --no-keep", Goal(1.05, at_least=False)
    return Row("cost", case, "us", median(ours), median(others), ratios, goal)


class _Hit(Closing):
    """A registry of one worker that has a small blob, and clients of it."""

    def __init__(
        self, options: Options, origin: Origin, option: str, path: str, data: bytes
    ) -> None:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        self._port = Port()
        self._registry = Registry(folder, origin.url(""), self._port, "--workers", "1", option)
        self._clients = [Client(self._port.number) for _ in range(8)]
        self._blob = path, data
        for _ in range(10):
            self.cost()

    def cost(self) -> float:
        """Microseconds of the processor for each of some hits."""
        before = self._registry.cpu()
        for client in self._clients * _HITS:
            client.ask(*self._blob, 0)
        used = self._registry.cpu() - before
        return used / (_HITS * len(self._clients)) * 1e6

    def close(self) -> None:
        """End the registry. Raises `CheckFailed` if a hit was wrong."""
        told = sum((client.told for client in self._clients), Told())
        for client in self._clients:
            client.close()
        self._registry.close()
        self._port.close()
        if told.cut or told.wrong:
            raise CheckFailed("a hit was wrong")


if __name__ == "__main__":
    sys.exit(main())
