"""The running digest of a file that grows.

A thread reads back what was appended and hashes it, so that whoever receives and writes does not
wait for SHA-256, which takes as long as both together; so what is verified is what readers find in
the file. It is woken when enough has gathered; a small blob has no thread at all. A successor,
too, finds bytes that nobody here has hashed, and goes on at once. Only the end waits for
what is left: the last chunk is withheld until the digest of all bytes is known (I5).

A digest that is not given decides nothing, so nobody waits for it, and it takes no processor from
those who bring and read the bytes: it is computed at the end, once they have them all. What takes
longer than a second to come is hashed meanwhile all the same, to be resumed after a reboot.

    appender                                   thread
    1 end += count                             1 wait for the bell
    2 enough? ring                             2 while covered < end: read, hash, covered += n
    finish: end the thread, hash what is left  3 go to 1
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time

from shmstream.system import threads

ALGORITHMS = {"sha256": 64, "sha512": 128}
"""The algorithms that a digest may name, and how many hex digits each has."""

_DIGEST = re.compile("|".join(f"{name}:[0-9a-f]{{{count}}}" for name, count in ALGORITHMS.items()))
_STEP = 1 << 18  # bytes; what is read back at one time: it stays in the cache
_ENOUGH = 1 << 19  # bytes; the thread is not woken for less
_LONG = 1.0  # s; what comes in less is hashed at its end, if no digest is given


def is_digest(text: str) -> bool:
    """Whether `text` is a digest in its one spelling: `sha256:` or `sha512:`, lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str) -> None:
    """Refuse what is neither a digest nor the name of an algorithm.

    Raises:
        ValueError: it is neither.
    """
    if digest not in ALGORITHMS and not is_digest(digest):
        raise ValueError(
            f"a digest is 'sha256:' or 'sha512:' and lower-case hex digits, not {digest[:200]!r}"
        )


def digest_of(fd: int, algorithm: str) -> str:
    """`algorithm:hex` of all bytes of a file. Reads them all."""
    running = hashlib.new(algorithm)
    position = 0
    while data := os.pread(fd, _STEP, position):
        running.update(data)
        position += len(data)
    return f"{algorithm}:{running.hexdigest()}"


class RunningDigest:
    """Hashes what is appended to the file `fd`.

    `expected` is `algorithm:hex`, or the algorithm alone when any digest will do. One thread at a
    time may call its methods.
    """

    def __init__(self, expected: str, fd: int) -> None:
        self._hash = hashlib.new(expected.partition(":")[0])
        self._fd = fd
        self._end = 0
        self.covered = 0
        """Bytes that are hashed."""
        self._lock = threading.Lock()  # held while `_hash` and `covered` do not agree
        self._bell = threading.Event()
        self._buffer = bytearray()
        self._thread: threads.Call | None = None
        self._closed = False
        self.is_given = ":" in expected
        """Whether the digest is known before the end, so that it decides who may have the end."""
        self._not_before = 0.0 if self.is_given else time.monotonic() + _LONG

    def update(self, count: int) -> None:
        """Note that `count` bytes were appended."""
        self._end += count
        if self._end - self.covered < _ENOUGH or self._bell.is_set():
            return
        if self.is_given or time.monotonic() >= self._not_before:
            if self._thread is None:
                self._start()
            self._bell.set()

    def _start(self) -> None:
        self._thread = threads.Call(self._run, "shmstream-digest")
        try:
            self._thread.start()
        except RuntimeError:  # none can be had, as in an interpreter that is ending
            self._thread = None

    def so_far(self) -> tuple[int, str]:
        """How many bytes are hashed, and their hex digest. May be less than there are."""
        with self._lock:
            return self.covered, self._hash.hexdigest()

    def finish(self) -> str:
        """The digest of all bytes, `algorithm:hex`. Blocks while it lags, for all of that.

        Raises:
            EOFError: the file is shorter than what was appended to it.
        """
        self.close()
        while self.covered < self._end:  # what the thread has left to us
            if not self._step():
                raise EOFError(f"of {self._end} bytes {self.covered} are left")
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def _run(self) -> None:
        while not self._closed:
            self._bell.wait()
            self._bell.clear()
            try:
                while not self._closed and self.covered < self._end:
                    if not self._step():
                        return  # shorter than it should be, which `finish` tells
            except OSError:  # `finish` meets it again, and has somebody to tell
                return

    def _step(self) -> bool:
        size = min(self._end - self.covered, _STEP)
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        with memoryview(self._buffer)[:size] as view:
            count = os.preadv(self._fd, [view], self.covered)
            with self._lock, view[:count] as data:
                self._hash.update(data)
                self.covered += count
        return count > 0

    def close(self) -> None:
        """End the thread, and wait for that. Idempotent."""
        self._closed = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
