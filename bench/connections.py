"""Several connections for one blob, beside aria2c, curl and s3fs: `python -m bench.connections`.

    python -m bench.connections [--docs FILE] [--size 512] [--rate 8] [--connections 8] [--rounds 3]
                                [--kills 100] [--only NAME,...] [--round-trip MS] [--quick]

The origin is a process of its own (bench/peers/upstream.py), which gives each connection `--rate`
MiB/s, has ETags and ranges, and counts what it sends. shmstream serves eight readers in processes
of their own, verifies the digest and syncs the blob to the disk; aria2c and curl write a file.

    throttled    the time to the last byte of the last reader, and to the first byte of the first;
                 how much later a reader has a byte than over one connection, at 64 places
    unthrottled  the same from an origin that is as fast as the machine
    sources      two origins of `--rate` MiB/s for each of two connections, beside one
    kills        the leader is killed (SIGKILL) in the middle, a follower goes on; how many bytes
                 the origin sent more than the blob has, which has an eighth of the size, and
                 16 MiB at least
    s3           a local S3 server (moto) behind a proxy that gives each connection `--rate`
                 MiB/s, by fsspec, beside `s3fs.get`; an eighth of the blob's size

All ways of one kind are gone in turn, in each round; figures are medians. With `--docs` the table
is written into that page, between its marks.

With `--round-trip` the origins are behind a proxy, which holds back what passes in each direction
for half of that, and the first bytes of a connection for a round trip more, as its handshake would.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.page import write
from bench.peers.origin import Blob, Origin
from bench.report import MIB, CheckFailed, machine, progress
from shmstream import Store, sweep

_READERS = 8
_PLACES = 64
_LEAST_KILLED = 16  # MiB; it is still coming when its leader is killed


class Trip(NamedTuple):
    """Seconds from the start to the first byte of the first reader, and to the last of the last.

    `places`: until the slowest reader has each 64th of the blob.
    """

    first: float
    last: float
    places: tuple[float, ...] = ()


_UnderWay = queue.SimpleQueue[tuple[float, bytes]]  # when it is due


class Row(NamedTuple):
    """A line of the table."""

    kind: str
    way: str
    first: float | None
    last: float | None
    beside: str
    goal: str


# A reader, in a process of its own.


def read(folder: str, key: str, sources: list[Any], connections: int) -> None:
    """Says "ready"; hears "go"; reads the blob; says when its first and last byte came."""
    import shmstream.sources.http  # noqa: F401  not in the time that is measured

    store = Store(folder, connections=connections)
    if sources[0].startswith("s3://"):
        from shmstream.sources.fsspec import FsspecSource

        sources = [FsspecSource(sources[0], **json.loads(sources[1]))]
    print("ready", flush=True)
    sys.stdin.readline()
    first, count = 0.0, 0
    times: list[float] = []
    with store.open(key, sources) as blob:
        while data := blob.read1(1 << 18):
            now = time.monotonic()
            first = first or now
            count += len(data)
            while len(times) < count * _PLACES // (blob.size or 1):
                times.append(now)
    print(json.dumps([first, time.monotonic(), count, times]), flush=True)


class _Readers:
    def __init__(
        self, folder: Path, key: str, sources: list[str], connections: int, count: int
    ) -> None:
        given = [str(folder), key, json.dumps(sources), str(connections)]
        command = [sys.executable, "-m", "bench.connections", "--reader", *given]
        self.all = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for each in self.all:
            assert each.stdout is not None
            if each.stdout.readline() != "ready\n":
                raise CheckFailed("a reader has not begun")

    def go(self) -> float:
        for each in self.all:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        return time.monotonic()

    def heard(self, began: float, size: int) -> Trip:
        """What all that were not killed have heard, when all have ended."""
        told = []
        for each in self.all:
            out, _ = each.communicate()
            if each.returncode == 0:
                told.append(json.loads(out))
        if not told or any(count != size for _, _, count, _ in told):
            raise CheckFailed(f"of {size} bytes, readers have {[each[2] for each in told]}")
        firsts, lasts, _, times = zip(*told, strict=True)
        places = (max(each) - began for each in zip(*times, strict=True))
        return Trip(min(firsts) - began, max(lasts) - began, tuple(places))


class Bench:
    """All ways, for one blob."""

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        self.folder = folder
        self.chosen = chosen
        self._count = 0

    @contextmanager
    def origin(self) -> Iterator[tuple[Origin, Blob]]:
        """The origin, with a blob."""
        with Origin(self._new()) as origin:
            origin.start()
            yield origin, origin.make(self.chosen.size * MIB)

    @contextmanager
    def way_to(self, origin: Origin) -> Iterator[int]:
        """The port where the origin is reached, from as far away as was chosen."""
        if not self.chosen.round_trip:
            yield origin.port
            return
        proxy = _Proxy(origin.port, delay=self.chosen.round_trip / 2000)
        try:
            yield proxy.port
        finally:
            proxy.close()

    def _new(self) -> Path:
        self._count += 1
        path = self.folder / str(self._count)
        path.mkdir()
        return path

    def shmstream(
        self, blob: Blob, sources: list[str], connections: int, readers: int = _READERS
    ) -> Trip:
        """Readers of one store."""
        folder = self._new()
        started = _Readers(folder, f"sha256:{blob.name}", sources, connections, readers)
        trip = started.heard(started.go(), blob.size)
        shutil.rmtree(folder)
        return trip

    def command(self, *command: str, size: int) -> Trip:
        """A program that writes a file `out` into its folder."""
        folder = self._new()
        began = time.monotonic()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - began
        if (folder / "out").stat().st_size != size:
            raise CheckFailed(f"{command[0]} has written another size")
        shutil.rmtree(folder)
        return Trip(0.0, took)

    def kill(self, origin: Origin, blob: Blob, url: str, at: float) -> int:
        """Kill the leader when `at` of the blob is published; bytes sent more than it has."""
        folder = self._new()
        origin.begin()
        started = _Readers(folder, f"sha256:{blob.name}", [url], self.chosen.connections, count=2)
        began = started.go()
        store = Store(folder)
        while not (found := store.flights()) or (found[0].published or 0) < at * blob.size:
            time.sleep(0.005)
        leader = found[0].leader
        assert leader is not None
        next(each for each in started.all if each.pid == leader.pid).kill()
        started.heard(began, blob.size)
        shutil.rmtree(folder)
        return sum(each.sent for each in origin.requests()) - blob.size


def _interleaved(rounds: int, ways: dict[str, Callable[[], Trip]]) -> dict[str, list[Trip]]:
    found: dict[str, list[Trip]] = {way: [] for way in ways}
    for index in range(rounds):
        for way, go in ways.items():
            progress(f"round {index + 1} of {rounds}: {way}")
            found[way].append(go())
    return found


def _aria2c(bench: Bench, url: str, size: int) -> Trip:
    many = str(bench.chosen.connections)
    return bench.command(
        "aria2c", "-q", f"-x{many}", f"-s{many}", "-k1M", "--file-allocation=none", "-o", "out",
        url, size=size,
    )  # fmt: skip


def measure_throttled(bench: Bench) -> list[Row]:
    """An origin that gives each connection little."""
    chosen = bench.chosen
    with bench.origin() as (origin, blob), bench.way_to(origin) as port:
        url = f"http://127.0.0.1:{port}{blob.path(chosen.rate * MIB)}"
        ways = {
            "shmstream, 1 connection": lambda: bench.shmstream(blob, [url], 1),
            f"shmstream, {chosen.connections}": lambda: bench.shmstream(
                blob, [url], chosen.connections
            ),
            f"aria2c -x{chosen.connections}": lambda: _aria2c(bench, url, blob.size),
        }
        one, many, aria = (found := _interleaved(chosen.rounds, ways)).values()
    first = _ratio([t.first for t in many], [t.first for t in one])
    last = _ratio([t.last for t in many], [t.last for t in aria])
    later = median(
        max(b - a for a, b in zip(alone.places, each.places, strict=True))
        for alone, each in zip(one, many, strict=True)
    )
    beside = (
        f"{last:.2f} of aria2c's; first byte {first:.2f} of one connection's; "
        f"any byte {later * 1000:.0f} ms later than over one, at most"
    )
    return [
        _row("throttled", next(iter(ways)), one),
        _row("throttled", list(ways)[1], many, beside, "at most 1.05; 1.1"),
        _row("throttled", list(found)[2], aria),
    ]  # fmt: skip


def measure_unthrottled(bench: Bench) -> list[Row]:
    """An origin as fast as the machine."""
    chosen = bench.chosen
    with bench.origin() as (origin, blob), bench.way_to(origin) as port:
        url = f"http://127.0.0.1:{port}{blob.path(0)}"
        ways = {
            "shmstream, 1 connection": lambda: bench.shmstream(blob, [url], 1),
            f"shmstream, {chosen.connections}": lambda: bench.shmstream(
                blob, [url], chosen.connections
            ),
            f"aria2c -x{chosen.connections}": lambda: _aria2c(bench, url, blob.size),
            "curl": lambda: bench.command("curl", "-sfo", "out", url, size=blob.size),
        }
        found = _interleaved(chosen.rounds, ways)
    one, many, *_ = found.values()
    last = _ratio([t.last for t in many], [t.last for t in one])
    rows = [_row("unthrottled", way, trips) for way, trips in found.items()]
    rows[1] = rows[1]._replace(beside=f"{last:.2f} of one connection's", goal="at most 1")
    return rows


def measure_sources(bench: Bench) -> list[Row]:
    """Two origins at once."""
    chosen = bench.chosen
    with ExitStack() as stack:
        origin, blob = stack.enter_context(bench.origin())
        other, _ = stack.enter_context(bench.origin())
        shutil.copy(origin._files / blob.name, other._files / blob.name)
        ports = [stack.enter_context(bench.way_to(each)) for each in (origin, other)]
        urls = [f"http://127.0.0.1:{port}{blob.path(chosen.rate * MIB)}" for port in ports]
        ways = {
            "shmstream, 2 of one source": lambda: bench.shmstream(blob, urls[:1], 2),
            "shmstream, 2 of each of two": lambda: bench.shmstream(blob, urls, 2),
        }
        one, two = _interleaved(chosen.rounds, ways).values()
    gain = _ratio([t.last for t in one], [t.last for t in two])
    return [
        _row("sources", "shmstream, 2 connections to one source", one),
        _row("sources", "shmstream, 2 to each of two", two, f"{gain:.2f} times as fast",
             "at least 1.9 times"),
    ]  # fmt: skip


def measure_kills(bench: Bench) -> list[Row]:
    """The leader is killed in the middle."""
    chosen = bench.chosen
    more = []
    size = max(chosen.size // 8, _LEAST_KILLED)
    with bench.origin() as (origin, whole):
        origin.remove(whole)
        blob = origin.make(size * MIB)
        url = f"http://127.0.0.1:{origin.port}{blob.path(chosen.rate * MIB)}"
        for index in range(chosen.kills):
            progress(f"kill {index + 1} of {chosen.kills}")
            more.append(bench.kill(origin, blob, url, 0.1 + 0.8 * index / max(chosen.kills, 1)))
    most, usual = max(more) / MIB, median(more) / MIB
    beside = f"{usual:.1f} MiB sent twice, {most:.1f} at most"
    way = f"{chosen.kills} leaders killed (a blob of {size} MiB)"
    return [Row("kills", way, None, None, beside, "at most 16 MiB")]


class _Proxy:
    """Passes connections on to a port of this host.

    What comes back is at `rate` bytes a second. What passes comes `delay` seconds later.
    """

    def __init__(self, port: int, rate: int = 0, delay: float = 0.0) -> None:
        self._to = port
        self._rate = rate
        self._delay = delay
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self._start(self._accept)

    @staticmethod
    def _start(work: Callable[..., None], *given: object) -> None:
        threading.Thread(target=work, args=given, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                handshake = time.monotonic() + 2 * self._delay
                for one, other, rate in ((client, server, 0), (server, client, self._rate)):
                    under_way: _UnderWay = queue.SimpleQueue()
                    self._start(self._take, one, under_way, handshake)
                    self._start(self._give, one, other, under_way, rate)

    def _take(self, one: socket.socket, under_way: _UnderWay, handshake: float) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                under_way.put((max(time.monotonic(), handshake) + self._delay, data))
        under_way.put((time.monotonic() + self._delay, b""))

    @staticmethod
    def _give(one: socket.socket, other: socket.socket, under_way: _UnderWay, rate: int) -> None:
        due = 0.0
        try:
            while (came := under_way.get())[1]:
                due = max(due, came[0])
                time.sleep(max(due - time.monotonic(), 0.0))
                other.sendall(came[1])
                due += len(came[1]) / rate if rate else 0.0
            other.shutdown(socket.SHUT_WR)
        except OSError:  # it has left: the other end is to know
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()


def measure_s3(bench: Bench) -> list[Row]:
    """An S3 server on this machine."""
    import fsspec

    from tests.support import s3

    chosen = bench.chosen
    with ExitStack() as stack:
        origin, _ = stack.enter_context(bench.origin())
        blob = origin.make(chosen.size * MIB // 8)
        server = stack.enter_context(s3.serving())
        proxy = _Proxy(int(server.options["endpoint_url"].rpartition(":")[2]), chosen.rate * MIB)
        stack.callback(proxy.close)
        system = fsspec.filesystem("s3", **server.options)
        system.mkdir("bench")
        system.put_file(str(origin._files / blob.name), "bench/blob")
        options = {**server.options, "endpoint_url": f"http://127.0.0.1:{proxy.port}"}
        given = ["s3://bench/blob", json.dumps(options)]
        code = (
            "import fsspec, json, sys; fsspec.filesystem('s3', **json.loads(sys.argv[1]))"
            ".get_file('bench/blob', 'out')"
        )
        ways = {
            "shmstream, 1 connection": lambda: bench.shmstream(blob, given, 1),
            f"shmstream, {chosen.connections}": lambda: bench.shmstream(
                blob, given, chosen.connections
            ),
            "s3fs": lambda: bench.command(sys.executable, "-c", code, given[1], size=blob.size),
        }
        found = _interleaved(chosen.rounds, ways)
    one, many, peer = found.values()
    beside = (
        f"{_ratio([t.last for t in many], [t.last for t in one]):.2f} of one connection's, "
        f"{_ratio([t.last for t in many], [t.last for t in peer]):.2f} of s3fs's"
    )
    rows = [_row("s3", f"{way} ({blob.size // MIB} MiB)", trips) for way, trips in found.items()]
    rows[1] = rows[1]._replace(beside=beside)
    return rows


KINDS: dict[str, Callable[[Bench], list[Row]]] = {
    "throttled": measure_throttled,
    "unthrottled": measure_unthrottled,
    "sources": measure_sources,
    "kills": measure_kills,
    "s3": measure_s3,
}


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _row(kind: str, way: str, trips: list[Trip], beside: str = "", goal: str = "") -> Row:
    first = median(t.first for t in trips)
    return Row(kind, way, first or None, median(t.last for t in trips), beside, goal)


def _page(rows: list[Row], chosen: argparse.Namespace, facts: dict[str, str]) -> str:
    lines = ["| | first byte | last byte | | goal |", "| --- | ---: | ---: | --- | --- |"]
    for each in rows:
        first = "" if each.first is None else f"{each.first * 1000:.0f} ms"
        last = "" if each.last is None else f"{each.last:.2f} s"
        cells = (f"{each.kind}: {each.way}", first, last, each.beside, each.goal)
        lines.append("| " + " | ".join(cells) + " |")
    quick = " A quick run: its figures mean nothing." if chosen.quick else ""
    far = f", {chosen.round_trip:g} ms of round trip" if chosen.round_trip else ""
    lines += [
        "",
        f"A blob of {chosen.size} MiB{far}, {chosen.rate} MiB/s for each connection where it is "
        f"throttled, {_READERS} readers; medians of {chosen.rounds} rounds, interleaved.{quick} "
        f"{facts['date'][:10]}, {facts['processor']}, {facts['cores']} cores, "
        f"Python {facts['python'].split()[-1]}, {facts['tcp']}, "
        f"load before {facts['load before']}, shmstream {facts['shmstream']}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table, write the page; the exit code."""
    chosen = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        facts = machine(Path(folder))
        bench = Bench(Path(folder), chosen)
        try:
            for kind in chosen.only.split(","):
                rows += KINDS[kind](bench)
        except CheckFailed as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()
    text = _page(rows, chosen, dict(facts))
    print(text)
    if chosen.docs is not None:
        mark = "bench.connections, far" if chosen.round_trip else "bench.connections"
        write(Path(chosen.docs), mark, text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.connections")
    parser.add_argument("--docs")
    parser.add_argument("--dir")
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--rate", type=int, default=8, help="MiB/s")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--round-trip", type=float, default=0.0, metavar="MS")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.size, chosen.rounds, chosen.kills = min(chosen.size, 64), 1, 1
    return chosen


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        _folder, _key, _sources, _connections = sys.argv[2:]
        read(_folder, _key, json.loads(_sources), int(_connections))
    else:
        sys.exit(main())
