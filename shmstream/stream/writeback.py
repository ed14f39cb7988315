"""`Writeback`: the disk begins to write a file while it grows, so the sync at its end is short.

The kernel keeps appended bytes in memory. It begins to write them after some seconds, or when they
are many. So without this, the sync of a commit would write most of the blob; and readers wait for
that sync, because the last chunk is withheld until the blob is on the disk (I5).

    appender                                  thread
    1 another 4 MiB are appended: start a
      call, unless one is under way
                                              2 for each 4 MiB that are there: have the kernel begin
                                                to write them. On a slow disk this takes long
    close: wait for the call, which ends
      after the step that it is at

Only the call waits for a slow disk, and never the appender. If the call ends just when the appender
finds it under way, the next append starts another call, or the sync writes what is left. If `close`
does not know of a call (see `update`), the call finds its descriptor closed, or begins to write the
file that has its number by then, which does no harm.
"""

from __future__ import annotations

import ctypes

from shmstream.system import threads

STEP = 4 << 20
"""Bytes that the kernel is told of at one time."""
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write, and do not wait for the end
_begin = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it
if _begin is not None:
    _begin.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def begin_to_write(fd: int, offset: int, count: int) -> bool:
    """Have the kernel begin to write these bytes of a file to the disk; whether it does so."""
    return _begin is not None and _begin(fd, offset, count, _WRITE) == 0


class Writeback:
    """Has the kernel write the file `fd` while it grows. One thread at a time may call it."""

    def __init__(self, fd: int, there: int) -> None:
        """`there`: bytes that the file has already."""
        self._fd = fd
        self._begun = self._end = there
        self._call: threads.Call | None = None
        self._is_over = False  # it was closed, or the kernel cannot

    def update(self, size: int) -> None:
        """Note that the file has `size` bytes by now. Does not wait for the disk."""
        self._end = size
        if size - self._begun < STEP or self._is_over:
            return
        if self._call is not None and self._call.is_alive():
            return
        call = threads.Call(self._run, "shmstream-writeback")
        try:
            call.start()
        except RuntimeError:  # no thread can be started: the sync writes all
            self._is_over = True
        else:  # not before: `close` would wait for a call that a signal handler kept from its start
            self._call = call

    def _run(self) -> None:
        while self._end - self._begun >= STEP and not self._is_over:
            if not begin_to_write(self._fd, self._begun, STEP):
                self._is_over = True
            self._begun += STEP

    def close(self) -> None:
        """End it; waits for the step that is under way. Idempotent."""
        self._is_over = True
        if self._call is not None:
            self._call.join()
