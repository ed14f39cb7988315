"""A store of 100,000 blobs beside one of 100: opening, listing, checking, evicting.

open          `Store(folder)` and `Store.open` of a complete blob, as long as with 100
first flight  of a new `Store` with `max_bytes`: it waits for no look at all blobs
check         `Store.check(verify=False)`, microseconds a blob; and `check()` of sealed blobs, which
              hashes none of them
ls            `Store.blobs()`, which is what programs list; and the command, from start to end
evict         1 % goes; and all goes, beside a bare `os.unlink` of each file of a store that was
              made alike, at the same time

Keys are digests in one store, and names in the other, where each blob has a record beside it.
The figures for each blob are CPU time of this process, or of the command; the notes have the time
on the clock. Everything is warm: the kernel remembers all files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

from bench.many.cost import Cost, cost_of
from bench.report import KIB, CheckFailed, Goal, Options, Row, progress
from shmstream import Description, Store
from shmstream.storage.layout import RECORD
from shmstream.storage.origin import note_source
from shmstream.storage.record import Record
from shmstream.stream.seal import seal

_MANY, _FEW = 100_000, 100
_SIZE = 16  # bytes of a blob
_A_BLOB = Goal(20, at_least=False, of_ratio=False)  # us
_AS_FEW = Goal(1.1, at_least=False)


def measure(options: Options) -> list[Row]:
    """Rows for keys that are digests, and for names."""
    many = 1000 if options.quick else _MANY
    rows = []
    for kind in KEYS:
        progress(f"store of {many:,} {kind}")
        stores = []
        for name, count in (("many", many), ("few", _FEW), ("bare", many)):
            stores.append(Store(options.folder / f"{kind}-{name}", durable=False))
            for number in range(count):
                make(stores[-1], kind, number)
        ours, few, bare = stores
        rows += _beside_few(options, kind, ours, few)
        rows += _for_each_blob(options, kind, ours, many)
        rows += _evicting(kind, ours, bare, many)
        for store in stores:
            shutil.rmtree(store.folder)
    return rows


def _data(number: int) -> bytes:
    return number.to_bytes(_SIZE, "little")


def digest_of(number: int) -> str:
    """The digest of a blob."""
    return f"sha256:{hashlib.sha256(_data(number)).hexdigest()}"


KEYS: dict[str, Callable[[int], str]] = {
    "digests": digest_of,
    "names": "https://example.com/{}".format,
}


def make(store: Store, kind: str, number: int) -> None:
    """A complete blob, sealed; one with a name has its record."""
    path = store.path(KEYS[kind](number))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, _data(number))
        note_source(fd, f"https://example.com/{number}")
        seal(fd, digest_of(number))
    finally:
        os.close(fd)
    if kind == "names":
        about = Description(_SIZE, '"etag"', "application/octet-stream")
        record = Record(KEYS[kind](number), digest_of(number), about)
        record.write(path + RECORD, durable=False)


def _beside_few(options: Options, kind: str, many: Store, few: Store) -> list[Row]:
    times = 20 if options.quick else 200
    key = KEYS[kind](0)
    works: dict[str, tuple[Callable[[Store], float], Goal]] = {
        "open the store": (partial(_open_store, times=times), _AS_FEW),
        "open a blob": (partial(_open_blob, key=key, times=times), _AS_FEW),
        "first flight with max_bytes": (_fly_first, Goal(1.5, at_least=False)),
    }
    rows = []
    for name, (work, goal) in works.items():
        ours, raw = [], []
        for number in range(options.rounds):
            took = {}
            for store in (many, few) if number % 2 else (few, many):
                took[store.folder] = work(store)
            ours.append(took[many.folder])
            raw.append(took[few.folder])
        case = f"{kind}: {name}, many / few"
        rows.append(Row.of_rounds("store", case, "us", ours, raw, goal=goal))
    return rows


def _open_store(store: Store, times: int) -> float:
    def work() -> None:
        for _ in range(times):
            Store(store.folder)

    return cost_of(work).cpu / times


def _open_blob(store: Store, key: str, times: int) -> float:
    def work() -> None:
        for _ in range(times):
            with store.open(key) as blob:
                if blob.role != "stored":
                    raise CheckFailed(f"{key} is not there")

    return cost_of(work).cpu / times


def _fly_first(store: Store) -> float:
    """On the clock: the first flight of a new store, without the look at all blobs after it."""
    took = []
    for _ in range(5):
        fresh = Store(store.folder, durable=False, max_bytes=1 << 40)
        took.append(cost_of(partial(fresh.fetch, "first", [bytes(4 * KIB)])).clock)
        fresh._upkeep.close()  # waits for the look
        fresh.remove("first")
    return median(took)


def _for_each_blob(options: Options, kind: str, store: Store, count: int) -> list[Row]:
    works: dict[str, Callable[[], object]] = {
        "check --quick": partial(store.check, verify=False),
        "check, sealed": store.check,
        "blobs()": store.blobs,
        "`shmstream ls`": partial(_command, store, "ls"),
        "`shmstream ls --json`": partial(_command, store, "ls", "--json"),
        "`shmstream check --quick`": partial(_command, store, "check", "--quick"),
        "evict, nothing goes": partial(store.evict, 1 << 50),
    }
    return [
        _row(f"{kind}: {name}, a blob", [cost_of(work) / count for _ in range(options.rounds)])
        for name, work in works.items()
    ]


def _row(case: str, costs: list[Cost], bare: Cost | None = None) -> Row:
    cpu, clock = median(each.cpu for each in costs), median(each.clock for each in costs)
    notes = {"on the clock": clock}
    if bare is None:
        return Row("store", case, "us", cpu, goal=_A_BLOB, notes=notes)
    notes["on the clock, bare"] = bare.clock
    return Row("store", case, "us", cpu, bare.cpu, [cpu / bare.cpu], _A_BLOB, notes)


def _command(store: Store, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shmstream", *arguments, "--store", store.folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise CheckFailed(done.stderr.decode()[:1000])


def _evicting(kind: str, store: Store, like: Store, count: int) -> list[Row]:
    """`like`: a store with the same blobs, whose files are removed by nothing but `os.unlink`."""
    total = store.stock().size
    part = cost_of(partial(store.evict, total * 99 // 100)) / count
    left = store.stock().count
    every = cost_of(partial(store.evict, 0)) / left
    if store.stock().count:
        raise CheckFailed("evict leaves blobs")
    beside = ("", RECORD) if kind == "names" else ("",)
    paths = [blob.path + each for _, blob in like.blobs() for each in beside]
    bare = cost_of(partial(_unlink, paths)) / count
    return [
        _row(f"{kind}: evict, 1 % goes, a blob", [part]),
        _row(f"{kind}: evict, all go / unlink", [every], bare),
    ]


def _unlink(paths: list[str]) -> None:
    for each in paths:
        os.unlink(each)
