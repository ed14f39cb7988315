"""The running digest of a file that grows.

A thread reads the appended bytes back from the file and hashes them. So the writer does not wait
for SHA-256, which takes as long as receiving and writing together; and the hashed bytes are those
that readers find in the file. The thread is woken when 512 KiB have gathered; a small blob needs no
thread. A successor begins at once, though its process has hashed none of the bytes that are in the
file already. Only the commit waits for the digest: the last chunk is withheld until the digest of
all bytes is known (I5).

If the caller gave only an algorithm, the digest decides nothing. So nobody waits for it, and it is
computed after the end, when it takes no processor time from the writer and the readers. But a
blob that takes longer than a second to arrive is hashed meanwhile, so that its download can be
resumed after a reboot. A store may leave that digest out (`Store(hash_named=False)`): then there is
no running digest, and a reboot has the download begin anew.

    appender                                    thread
    1 end += count                              1 wait for the bell
    2 if enough is not hashed yet, ring         2 while covered < end: read, hash, covered += n
    finish: end the thread, hash the last bytes 3 go to 1
"""

from __future__ import annotations

import os
import threading
import time

from shmstream.stream.spelling import ALGORITHMS, OCI_DIGEST, is_spelled, new_hash, read_digest
from shmstream.system import greenlets, threads

_STEP = 1 << 18  # bytes; read back at one time; so many stay in the processor's cache
_ENOUGH = 1 << 19  # bytes; the thread is not woken for fewer
_LONG = 1.0  # s; without a given digest, a blob that arrives faster is hashed at the end


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of an OCI registry: `sha256:` or `sha512:`, lower-case hex."""
    return OCI_DIGEST.fullmatch(text) is not None


def is_known(text: bytes) -> bool:
    """Whether a control block may have this digest: one, the name of an algorithm, or none."""
    digest = text.decode("ascii", "replace")
    return not digest or digest in ALGORITHMS or is_spelled(digest)


def require_digest(text: str) -> str:
    """`text` in the one spelling of a digest, `algorithm:hex`.

    Raises:
        ValueError: it is no digest.
    """
    if not isinstance(text, str) or (found := read_digest(text)) is None:
        told = f"{text!r:.200} is no digest"
        raise ValueError(f"{told}: a digest is an algorithm, ':' and hex digits, as sha256:9f86...")
    return found


def digest_or_algorithm(text: str) -> str:
    """`text` in the one spelling of a digest, or the name of an algorithm.

    Raises:
        ValueError: it is neither, or this Python cannot compute it.
    """
    if not isinstance(text, str) or text not in ALGORITHMS:
        return require_digest(text)
    new_hash(text)
    return text


def digest_of(fd: int, algorithm: str) -> str:
    """`algorithm:hex` of all bytes of a file. Reads them all."""
    running = new_hash(algorithm)
    position = 0
    while data := os.pread(fd, _STEP, position):
        running.update(data)
        position += len(data)
    return f"{algorithm}:{running.hexdigest()}"


class RunningDigest:
    """Hashes the bytes that are appended to the file `fd`.

    `expected` is `algorithm:hex`, or the algorithm alone if there is no digest to compare with. One
    thread at a time may call its methods.
    """

    def __init__(self, expected: str, fd: int, there: int = 0) -> None:
        """`there`: bytes that the file has already. They are hashed with those that come, so that
        the hashing takes no processor from a takeover.
        """
        self._hash = new_hash(expected.partition(":")[0])
        self._fd = fd
        self._end = there
        self.covered: int = 0
        """Bytes that are hashed."""
        self._lock = threading.Lock()  # held while `_hash` and `covered` are changed together
        self._bell = threads.Flag()
        self._buffer = bytearray()
        self._thread: threads.Call | None = None
        self._closed = False
        self.is_given: bool = ":" in expected
        """Whether `expected` names a digest, so that the last chunk waits until it is verified."""
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
        except RuntimeError:  # no thread can be started, as when the interpreter ends
            self._thread = None

    def so_far(self) -> tuple[int, str]:
        """How many bytes are hashed, perhaps not all appended ones, and their hex digest."""
        with self._lock:
            return self.covered, self._hash.hexdigest()

    def finish(self) -> str:
        """The digest of all bytes, `algorithm:hex`. Blocks until all of them are hashed.

        Raises:
            EOFError: the file has fewer bytes than were appended.
        """
        self.close()
        while self.covered < self._end:  # bytes that the thread has not hashed
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
                        return  # the file is too short; `finish` raises that
            except OSError:  # `finish` meets the same error, and raises it to its caller
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
        greenlets.give_way()
        return count > 0

    def close(self) -> None:
        """End the thread, and wait for its end. Idempotent."""
        self._closed = True
        self._bell.set()
        if self._thread is not None:
            self._thread.join()
