"""One POSIX semaphore that wakes one subscriber: ring, bounded wait, unlink.

A subscriber creates its `Doorbell` and waits on it; the writer opens it by name as a `Ringer` and
posts it. A ring may be spurious or missing (I4): it has no content, and only says "load the block
again". So a wait takes all rings that have come, because one load answers them all.

The subscriber's end is the C library's own semaphore, called through ctypes. It waits with
`sem_clockwait` on the monotonic clock. `acquire` of posix_ipc has two faults that matter inside
servers: it waits on the wall clock, so that setting the clock back stretches a bounded wait; and it
swallows an exception that a signal handler raises during the wait, so that a worker which turns
SIGTERM into SystemExit would not end.

The subscriber makes the semaphore's file itself. `sem_open` would make it under a temporary name
first, which nothing tells apart from the file of another program:

    sem_open                                this module
    1 make `sem.XXXXXX`, a random name      1 make `sem.shmd-...`, a name that `sweep` knows
    2 store the value, map the file         2 store an initialised semaphore, map the file
    3 link it to its name, unlink 1

A process that is killed between 1 and 3 of `sem_open` leaves a file that nothing may ever remove
(I8). Here it leaves a file that the next reader of the slot, `sweep` or the end of the stream
removes. No process opens the file before 2 is done, because the slot names it only after that. If
the stream ends meanwhile, its writer may remove the name: then no ring comes, and the reader checks
by itself (I4).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import posix_ipc

from shmstream.stream.listing import DOORBELL, FOLDER, facts_of, ours
from shmstream.system import greenlets
from shmstream.system.process import fork_lock

_NAME = re.compile(rf"{DOORBELL}[0-9a-f]{{12}}\.[0-9a-f]+\.[0-9a-f]+")
_NANOSECONDS = 1_000_000_000

_SIZE = 4 * ctypes.sizeof(ctypes.c_long)  # bytes of a `sem_t`, of glibc and of musl

_SHORTEST, _LONGEST = 0.001, 0.05  # s; pauses of a greenlet that waits
_ENOUGH = 1 << 16  # rings to take at one time; more make the next waits spurious (I4)

GENERATIONS = 1 << 20
"""Generations of a slot are counted modulo this; a name has room for five hexadecimal digits."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.sem_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED
_libc.sem_post.argtypes = [ctypes.c_void_p]
_libc.sem_timedwait.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

_trywait = ctypes.PyDLL(None).sem_trywait  # never waits, so it may keep the interpreter's lock
_trywait.argtypes = [ctypes.c_void_p]


def _waiting(libc: ctypes.CDLL) -> tuple[Callable[..., int], int, tuple[int, ...]]:
    """The function that waits for a semaphore, its clock, and the arguments that name the clock.

    It is called with the semaphore, then those arguments, then the deadline.
    """
    if not hasattr(libc, "sem_clockwait"):  # musl, and glibc before 2.30, have the wall clock only
        return libc.sem_timedwait, time.CLOCK_REALTIME, ()
    libc.sem_clockwait.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return libc.sem_clockwait, time.CLOCK_MONOTONIC, (time.CLOCK_MONOTONIC,)


_timedwait, _clock, _said_of_clock = _waiting(_libc)

_FILE_PREFIX = "sem." if hasattr(_libc, "gnu_get_libc_version") else ""


def _make(name: str) -> ctypes.c_void_p:
    """Make a semaphore of that name, which does not exist; where it is mapped.

    Raises:
        OSError: shared memory or descriptors have run out; nothing is left behind.
    """
    value = ctypes.create_string_buffer(_SIZE)
    _libc.sem_init(value, 1, 0)  # 1: shared between processes
    path = path_of(name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, value.raw)  # a tmpfs takes all of so few bytes, or none
        address = _libc.mmap(None, _SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), name)
    except BaseException:
        with suppress(FileNotFoundError):  # the stream has ended, and its writer removes doorbells
            os.unlink(path)
        raise
    finally:
        os.close(fd)
    return ctypes.c_void_p(address)


def name_of(token: int, slot: int, generation: int) -> str:
    """The name of a doorbell: 29 characters at most, never used twice within a stream."""
    return f"/{DOORBELL}{token:012x}.{slot:x}.{generation:x}"


def path_of(name: str) -> str:
    """The path of the semaphore's file: glibc puts `sem.` before the name, musl does not."""
    return f"{FOLDER}/{_FILE_PREFIX}{name[1:]}"


def slot_of(name: str) -> int:
    """The number of the slot whose doorbell has that name.

    Raises:
        ValueError: no doorbell has such a name.
    """
    _, slot, _ = name.split(".")
    return int(slot, 16)


class Doorbell:
    """The subscriber's end. Creating it replaces a semaphore of that name.

    Create it only while holding the lock on the slot: then a semaphore of that name was left by a
    reader that was killed between making it and filling the slot.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        unlink(name)
        self._address: ctypes.c_void_p | None = _make(name)
        self._busy = False
        self._closed = False
        self._rest = _SHORTEST
        self._deadline = _Timespec()
        self._arguments = (
            self._address, *_said_of_clock, ctypes.byref(self._deadline),
        )  # fmt: skip

    def wait(self, seconds: float) -> int:
        """Take all rings that have come; if there are none, wait for one, at most `seconds`.

        How many it took: 0 when the time is over, and at most 65,536. A signal also ends the wait,
        after its handler has run; then this returns 1, or raises what the handler raised.
        """
        pause = greenlets.pausing()
        deadline = time.clock_gettime_ns(_clock) + int(seconds * _NANOSECONDS)
        self._deadline.tv_sec = deadline // _NANOSECONDS
        self._deadline.tv_nsec = deadline % _NANOSECONDS
        self._busy = True  # from here on `close` leaves the unmapping to us
        rings = 0
        try:
            # Before the wait, because a reader that has slept has bytes to read. A signal handler
            # may close it at any time.
            while rings < _ENOUGH and not self._closed and not _trywait(self._address):
                rings += 1
            if rings or self._closed:
                return rings or 1
            if pause is not None:
                return int(self._poll(seconds, pause))
            if _timedwait(*self._arguments):
                return self._unrung(ctypes.get_errno())
            return 1
        finally:
            self._busy = False
            if self._closed:
                self._let_go()

    def _unrung(self, code: int) -> int:
        if code not in (errno.ETIMEDOUT, errno.EINTR):
            raise OSError(code, os.strerror(code), self.name)
        return int(code == errno.EINTR)

    def _poll(self, seconds: float, pause: Callable[[float], object]) -> bool:
        """Take one ring, for a greenlet: the longer none comes, the longer it pauses in between."""
        deadline = time.monotonic() + seconds
        while not self._closed and _trywait(self._address):
            if (left := deadline - time.monotonic()) <= 0:
                return False
            pause(min(self._rest, left))
            self._rest = min(self._rest * 1.5, _LONGEST)
        self._rest = _SHORTEST
        return True

    def ring(self) -> None:
        """Wake the subscriber from within its own process. Does nothing once it is closed."""
        with fork_lock:  # so that the semaphore is not unmapped meanwhile
            if self._address is not None:
                _libc.sem_post(self._address)

    def close(self, *, unlink_name: bool) -> None:
        """Close the semaphore; with `unlink_name`, remove its name from the host too.

        If another thread waits on it, or the code that a signal handler interrupted, this wakes
        the waiter; the memory stays mapped until the waiter unmaps it.
        """
        if unlink_name:
            unlink(self.name)
        self._closed = True
        if self._busy:
            self.ring()  # the waiter may be unmapping it at this moment
        else:
            self._let_go()

    def _let_go(self) -> None:
        with fork_lock:  # so that no thread posts it meanwhile
            if self._address is not None:
                address, self._address = self._address, None
                _libc.munmap(address, _SIZE)

    def abandon(self) -> None:
        """In a forked child: unmap it. The threads that may wait for it are the parent's."""
        self._closed = True
        self._let_go()

    def __repr__(self) -> str:
        return f"<Doorbell {self.name}>"


class Ringer:
    """The writer's end of a doorbell that a subscriber has made."""

    def __init__(self, name: str) -> None:
        """Raises:
        FileNotFoundError: if the doorbell is gone.
        """
        self._semaphore = _open(name)
        self.ring: Callable[[], None] = self._semaphore.release
        """Post once, without blocking. Raises OSError when it is already posted to its limit."""

    def close(self) -> None:
        """Close the semaphore; its name stays."""
        with fork_lock:
            self._semaphore.close()


def _open(name: str) -> posix_ipc.Semaphore:
    """Open a semaphore; every failure is an OSError with its number.

    The C library maps the file whatever its size is, and to touch a page behind its end is SIGBUS.
    """
    if os.stat(path_of(name), follow_symlinks=False).st_size < _SIZE:
        raise FileNotFoundError(errno.ENOENT, "it is no semaphore", name)
    try:
        with fork_lock:
            return posix_ipc.Semaphore(name)
    except posix_ipc.ExistentialError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error
    except OSError as error:
        if error.errno is None:  # posix_ipc drops the number when descriptors have run out
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name) from error
        raise


def unlink(name: str) -> bool:
    """Remove a doorbell's name from the host; False if there was none."""
    try:
        os.unlink(path_of(name))
    except FileNotFoundError:
        return False
    return True


def is_there(name: str) -> bool:
    """Whether this user has a doorbell of that name on this host."""
    facts = facts_of(path_of(name))
    return facts is not None and stat.S_ISREG(facts.st_mode)


def names(
    token: int | None = None, among: Iterable[str] | None = None
) -> Iterator[tuple[int, str]]:
    """Token and name of every doorbell of this user on the host, or of one stream's doorbells.

    `among`: a listing that the caller has; else this lists the shared memory of the host.
    """
    wanted = DOORBELL if token is None else f"{DOORBELL}{token:012x}."
    for _, bare, is_file in ours(wanted, among):
        if is_file and _NAME.fullmatch(bare):
            yield int(bare.removeprefix(DOORBELL).partition(".")[0], 16), "/" + bare


def strangers(among: Iterable[str] | None = None) -> list[str]:
    """Paths that begin like those of doorbells, and are none: folders, pipes, impossible names."""
    found = ours(DOORBELL, among)
    return sorted(path for path, bare, is_file in found if not (is_file and _NAME.fullmatch(bare)))
