"""One POSIX semaphore that wakes one subscriber: ring, bounded wait, drain, unlink.

A subscriber creates its `Doorbell` and waits on it; the writer opens it by name as a `Ringer` and
posts it. A ring may be spurious or missing (I4): it has no content, and only says "load the block
again".

The subscriber's end is the C library's own semaphore, called through ctypes. It waits with
`sem_clockwait` on the monotonic clock. `acquire` of posix_ipc has two faults that matter inside
servers: it waits on the wall clock, so that setting the clock back stretches a bounded wait; and it
swallows an exception that a signal handler raises during the wait, so that a worker which turns
SIGTERM into SystemExit would not end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator

import posix_ipc

from shmstream.system.process import fork_lock

_FOLDER = "/dev/shm"
_PREFIX = "shmd-"
_NANOSECONDS = 1_000_000_000

_ENOUGH = 1 << 16  # rings to forget at one time; more make the next waits spurious (I4)

GENERATIONS = 1 << 20
"""Generations of a slot are counted modulo this; a name has room for five hexadecimal digits."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.sem_open.restype = ctypes.c_void_p
_libc.sem_close.argtypes = [ctypes.c_void_p]
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


def name_of(token: int, slot: int, generation: int) -> str:
    """The name of a doorbell: 29 characters at most, never used twice within a stream."""
    return f"/{_PREFIX}{token:012x}.{slot:x}.{generation:x}"


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
        with fork_lock:  # a fork meanwhile would leave the C library's own lock taken in the child
            address = _libc.sem_open(name.encode(), os.O_CREAT | os.O_EXCL, 0o600, 0)
        if not address:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), name)
        self._address: ctypes.c_void_p | None = ctypes.c_void_p(address)
        self._busy = False
        self._closed = False
        self._deadline = _Timespec()
        self._arguments = (
            self._address, *_said_of_clock, ctypes.byref(self._deadline),
        )  # fmt: skip

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most `seconds`; False when the time is over.

        A signal also ends the wait, after its handler has run; then this returns True, or raises
        what the handler raised.
        """
        deadline = time.clock_gettime_ns(_clock) + int(seconds * _NANOSECONDS)
        self._deadline.tv_sec, self._deadline.tv_nsec = divmod(deadline, _NANOSECONDS)
        self._busy = True  # from here on `close` leaves the unmapping to us
        try:
            if self._closed or _timedwait(*self._arguments) == 0:
                return True
            code = ctypes.get_errno()
        finally:
            self._busy = False
            if self._closed:
                self._let_go()
        if code == errno.ETIMEDOUT:
            return False
        if code == errno.EINTR:
            return True
        raise OSError(code, os.strerror(code), self.name)

    def drain(self) -> int:
        """Forget the rings so far, at most 65,536; how many were forgotten. Never blocks."""
        forgotten = 0
        self._busy = True
        try:
            while not self._closed and forgotten < _ENOUGH and not _trywait(self._address):
                forgotten += 1
        finally:
            self._busy = False
            if self._closed:
                self._let_go()
        return forgotten

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
            _libc.sem_post(self._address)
        else:
            self._let_go()

    def _let_go(self) -> None:
        if self._address is not None:
            address, self._address = self._address, None
            with fork_lock:
                _libc.sem_close(address)

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
    """Open a semaphore; every failure is an OSError with its number."""
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
        posix_ipc.unlink_semaphore(name)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error
    return True


def names(token: int | None = None) -> Iterator[tuple[int, str]]:
    """Token and name of every doorbell of this user on the host, or of one stream's doorbells."""
    prefix = _PREFIX if token is None else f"{_PREFIX}{token:012x}."
    with os.scandir(_FOLDER) as entries:
        for entry in entries:
            bare = entry.name.removeprefix("sem.")  # glibc adds that prefix, musl does not
            if not bare.startswith(prefix):
                continue
            try:
                owner = entry.stat(follow_symlinks=False).st_uid
                found = int(bare.removeprefix(_PREFIX).partition(".")[0], 16)
            except (FileNotFoundError, ValueError):
                continue
            if owner == os.geteuid():
                yield found, "/" + bare
