"""The running digest of a file that grows.

As a rule every append is hashed as it is written. A successor, however, finds bytes in the file
that it has not seen. It must not keep everybody waiting while it hashes them (a second for each
1.4 GiB), so a thread reads them back and catches up, while the flight goes on; appends are hashed
by that thread until it has reached the end of the file, and directly from then on. Only the end
waits for it: the last chunk is withheld until the digest of all bytes is known (I5).

    appender, with the lock                    thread
    1 end += count                             1 with the lock: covered == end? then be gone, and
    2 no thread? hash the data                   from now on the appender hashes
                                               2 read from `covered` on, hash, covered += n; go to 1
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PATTERN = re.compile(r"(sha256)(?::[0-9a-f]{64})?|(sha512)(?::[0-9a-f]{128})?")
_STEP = 1 << 20  # bytes


def check_digest(digest: str) -> None:
    """Refuse what is neither a digest nor the name of an algorithm.

    Raises:
        ValueError: it is neither.
    """
    if not _PATTERN.fullmatch(digest):
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
        self._covered = 0
        self._end = 0
        self._lock = threading.Lock()  # guards `_end`, `_closed`, and whether there is a thread
        self._thread: threading.Thread | None = None
        self._lags = False
        self._closed = False
        self.is_given = ":" in expected
        """Whether the digest is known before the end, so that it decides who may have the end."""

    def update(self, data: Buffer, count: int) -> None:
        """Note that `data`, of `count` bytes, was appended."""
        with self._lock:
            self._end += count
            if self._lags:
                return
        self._hash.update(data)
        self._covered = self._end

    def skip(self, count: int) -> None:
        """Note that `count` bytes were there already; a thread reads them. Only before `update`."""
        if count:
            self._end = count
            self._lags = True
            self._thread = threading.Thread(target=self._run, name="shmstream-digest", daemon=True)
            self._thread.start()

    def so_far(self) -> tuple[int, str] | None:
        """How many bytes there are, and the hex digest of all of them; None while it lags."""
        return None if self._lags else (self._covered, self._hash.hexdigest())

    def finish(self) -> str:
        """The digest of all bytes, `algorithm:hex`. Blocks while it lags, for all of that.

        Raises:
            EOFError: the file is shorter than what was appended to it.
        """
        self.close()
        while self._covered < self._end:  # what the thread has left to us
            if not self._step():
                raise EOFError(f"of {self._end} bytes {self._covered} are left")
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                if self._covered == self._end:
                    self._lags = False
                    return
            if not self._step():
                return  # shorter than it should be, which `finish` tells

    def _step(self) -> bool:
        data = os.pread(self._fd, min(_STEP, self._end - self._covered), self._covered)
        self._hash.update(data)
        self._covered += len(data)
        return bool(data)

    def close(self) -> None:
        """End the thread, and wait for that. Idempotent."""
        with self._lock:
            self._closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
