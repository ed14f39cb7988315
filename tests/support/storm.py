"""A storm of signals over the leaders and followers of several flights of one store.

The role `storm` runs in an interpreter without threads, which forks *workers*. A worker opens one
blob after the other, reads it to its end, and compares it. A few keys are wanted at a time, by all
workers, so that there are leaders and followers of each. The storm sends a random signal to a
random worker at a random moment:

    SIGKILL             another worker takes its place
    SIGTERM, SIGINT     the worker ends in good order, or not, and another one takes its place
    SIGSTOP             the worker goes on a moment later (SIGCONT)

A source is asked for no byte that any reader has had before: each worker stores how far it has read
a blob in memory that all share, and each source compares the offset that it is asked for with that.
"""

from __future__ import annotations

import faulthandler
import hashlib
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from shmstream import Feed, Store
from shmstream.sources.base import Source
from shmstream.sources.http import HTTPSource
from shmstream.system.process import close_all
from tests.support.flights import make_store
from tests.support.interpreters import Link
from tests.support.operations import files, make_old, wait_for_end
from tests.support.roles import content

WORKERS = 8
KEYS = 3
"""Keys that are wanted at a time."""
SIZE = 400_000  # bytes
HTTP_SEED = 77
PATIENCE = 60  # s; a worker that reads one blob for longer hangs
_PIECE = 40_000  # bytes
_BASE = content(5, SIZE)
_HTTP = content(HTTP_SEED, SIZE)
_MOMENT = 0.012  # s; the longest from one signal to the next
_STOPPED = 0.05  # s; the longest that a worker is stopped
_AGAIN = 10.0  # s; a worker that goes on for so long is asked again to end
_RECENT = 256  # keys whose positions are remembered
_KEPT = 100  # blobs that stay
_ENDING = (signal.SIGTERM, signal.SIGINT)
_KINDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)


class Board:
    """What all workers share: which keys are wanted, and how far each worker has read each blob.

    One worker at a time has a `place`, and it alone writes the words of that place.
    """

    def __init__(self) -> None:
        size = 8 * (2 + WORKERS * (_RECENT + 1))
        self._words = memoryview(mmap.mmap(-1, size)).cast("Q")

    @property
    def first(self) -> int:
        """The number of the first key that is wanted."""
        return max(self._words[2 + place * (_RECENT + 1)] for place in range(WORKERS))

    @property
    def is_over(self) -> bool:
        return bool(self._words[0])

    def end(self) -> None:
        self._words[0] = 1

    def done(self, place: int, number: int) -> None:
        self._words[2 + place * (_RECENT + 1)] = number + 1

    def note(self, place: int, number: int, position: int) -> None:
        word = self._word(place, number)
        if self._words[word] >> 32 != number or self._words[word] & 0xFFFFFFFF < position:
            self._words[word] = number << 32 | position

    def read(self, number: int) -> int:
        """How far any worker, alive or dead, has read the blob."""
        words = (self._words[self._word(place, number)] for place in range(WORKERS))
        return max((each & 0xFFFFFFFF for each in words if each >> 32 == number), default=0)

    def _word(self, place: int, number: int) -> int:
        return 3 + place * (_RECENT + 1) + number % _RECENT


def data_of(number: int) -> bytes:
    """The content of the blob of that number: no two are the same at any offset."""
    if number % KEYS == 0:
        return _HTTP
    turn = number * 1009 % SIZE
    return _BASE[turn:] + _BASE[:turn]


def key_of(number: int) -> str:
    if number % KEYS == 0:
        return f"name {number}"
    return "sha256:" + hashlib.sha256(data_of(number)).hexdigest()


class Slow:
    """A source that gives its bytes in pieces, and pauses in between."""

    name = "a slow source"

    def __init__(self, board: Board, number: int) -> None:
        self._board, self._number = board, number

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        require(self._board, self._number, offset if validator in (None, "v") else 0)
        return Feed(self._pieces(offset), offset, SIZE, "v")

    def _pieces(self, offset: int) -> Iterator[bytes]:
        data = data_of(self._number)
        for start in range(offset, SIZE, _PIECE):
            yield data[start : start + _PIECE]
            time.sleep(random.random() * 0.004)  # the network's, not a synchronisation


class SlowHTTP(HTTPSource):
    """The same over HTTP."""

    def __init__(self, board: Board, number: int, url: str) -> None:
        super().__init__(url)
        self._board, self._number = board, number

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        require(self._board, self._number, offset)
        return super().open(offset, validator)


def require(board: Board, number: int, offset: int) -> None:
    """End this worker if bytes are asked for that a reader has had: then progress was lost."""
    may_be_removed = number < board.first - _KEPT // 2  # the worker was stopped for long
    if not may_be_removed and (had := board.read(number)) > offset:
        sys.stderr.write(f"{key_of(number)}: {had} bytes were read, and it asks from {offset}\n")
        sys.stderr.flush()
        os._exit(3)


def make(folder: str) -> Store:
    return make_store(folder, {"publish_interval": 0.002, "publish_bytes": 65536})


def work(place: int, board: Board, folder: str, url: str, seed: str) -> None:
    """Read one blob after the other, to the end of the storm."""
    chance = random.Random(seed)
    store = make(folder)
    parent = os.getppid()
    while not board.is_over and os.getppid() == parent:
        signal.alarm(PATIENCE)
        number = board.first + chance.randrange(KEYS)
        read_one(store, place, board, url, number)
        if number == board.first:
            board.done(place, number)


def read_one(store: Store, place: int, board: Board, url: str, number: int) -> None:
    source: Source = Slow(board, number)
    if number % KEYS == 0:
        source = SlowHTTP(board, number, url)
    data, position = data_of(number), 0
    with store.open(key_of(number), source) as blob:
        while piece := blob.read1():
            assert piece == data[position : position + len(piece)], "wrong bytes"
            position += len(piece)
            board.note(place, number, position)
    assert position == SIZE, "it ended too early"


def spawn(place: int, board: Board, folder: str, url: str, chance: random.Random) -> int:
    """A new worker; its pid."""
    seed, handles = str(chance.random()), chance.random() < 0.5
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # else one may interrupt the fork
    if (child := os.fork()) == 0:
        live(place, board, folder, url, seed, handles=handles)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    return child


def live(place: int, board: Board, folder: str, url: str, seed: str, *, handles: bool) -> NoReturn:
    code = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)  # a worker that hangs says where
        if handles:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            work(place, board, folder, url, seed)
        except (KeyboardInterrupt, SystemExit):
            for each in _ENDING:
                signal.signal(each, signal.SIG_IGN)
        close_all()
        code = 0
    except BaseException:  # noqa: BLE001  nothing of the parent may go on in the child
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Asked:
    """When a worker was asked to end, first and last, and by which signal; 0: by the board."""

    def __init__(self, kind: int = 0) -> None:
        self.kind = kind
        self.first = self.last = time.monotonic()


def storm(link: Link, folder: str, url: str, seed: str, signals: int) -> None:
    """Send so many signals, and say how it went: blobs that were read, and what was wrong."""
    chance = random.Random(seed)
    shared = set(os.listdir("/dev/shm"))
    board = Board()
    store = make(folder)
    wrong: list[str] = []
    places = {spawn(place, board, folder, url, chance): place for place in range(WORKERS)}
    ending: dict[int, Asked] = {}  # by pid
    stopped: dict[int, float] = {}  # pid -> when it is to go on
    removed = 0
    for _ in range(signals):
        until = time.monotonic() + chance.random() * _MOMENT
        while (now := time.monotonic()) < until:
            time.sleep(min(0.002, until - now))  # the moment: nothing is waited for
            go_on(stopped)
        victim = chance.choice(list(places))
        kind = chance.choice(_KINDS)
        os.kill(victim, kind)
        if kind == signal.SIGSTOP:
            stopped.setdefault(victim, time.monotonic() + chance.random() * _STOPPED)
        else:
            place = places.pop(victim)
            ending[victim] = Asked(kind)
            places[spawn(place, board, folder, url, chance)] = place
        wrong += ended(ending)
        while removed < board.first - _KEPT:  # or the disk fills up
            remove(store, removed)
            removed += 1
        if len(wrong) > 20:
            break
    board.end()
    ending |= {pid: Asked() for pid in places}
    while ending:
        go_on(stopped, at_once=True)
        wrong += ended(ending)
        time.sleep(0.002)
    read = board.first
    wrong += after(store, board, url, removed)
    wrong += [f"in /dev/shm: {each}" for each in set(os.listdir("/dev/shm")) - shared]
    link.say({"read": read, "wrong": wrong})


def go_on(stopped: dict[int, float], *, at_once: bool = False) -> None:
    for pid, when in list(stopped.items()):
        if at_once or time.monotonic() >= when:
            del stopped[pid]
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:  # it was killed meanwhile
                continue


def ended(ending: dict[int, Asked]) -> list[str]:
    """What was wrong with the workers that have ended by now, or should have.

    A worker is asked again if it goes on: Python drops an exception that a signal handler raises
    while an object is finalized.
    """
    wrong = []
    now = time.monotonic()
    for pid, asked in list(ending.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            del ending[pid]
            if status not in (0, signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
                wrong.append(f"a worker ended with {status}")
        elif now - asked.first > 2 * PATIENCE:
            os.kill(pid, signal.SIGKILL)
            wrong.append("a worker does not end")
        elif asked.kind and now - asked.last > _AGAIN:
            os.kill(pid, asked.kind)
            asked.last = now
    return wrong


def remove(store: Store, number: int) -> None:
    place = store._layout.place(key_of(number))
    for path in (place.path, place.record):
        Path(path).unlink(missing_ok=True)


def after(store: Store, board: Board, url: str, removed: int) -> list[str]:
    """What is wrong when all is over: every flight that was begun is completed first."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(PATIENCE)
            for number in range(removed, board.first + KEYS):
                read_one(store, 0, board, url, number)
                wait_for_end(store)
                remove(store, number)
            make_old(store.folder)
            store.gc(partial_age=60)
            found = [str(each) for each in store.check()]
            found += sorted(files(store.folder) - {store._layout.mark})
            sys.stderr.write("".join(f"left: {each}\n" for each in found))
            code = 2 if found else 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return [f"something is left: {status}"] if status else []
