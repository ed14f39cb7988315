"""`Inlet`: a pipe into a blob, for programs that write to a descriptor, such as another process.

Only the writer's own process may write to the partial file, because it counts and publishes the
bytes. So what needs a descriptor gets the end of a pipe, and a thread appends what comes out:

    other process                thread                         the writer's thread
    writes to the pipe           1 wait for bytes, or a ring    settle: hold the lock; append what
    ends: its end is closed      2 hold the lock; append what     the pipe has now; so bytes that
                                   the pipe has                   were written before stay before
                                 3 at the end of the pipe, end  finish: close our end, wait for the
                                                                  thread
                                                                close: ring, wait for the thread

If appending fails, the thread closes the pipe: the other process gets SIGPIPE, and `finish` raises
the error.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from shmstream.system import greenlets, threads
from shmstream.system.process import fork_lock, register

_STEP = 1 << 18  # bytes; what is taken from the pipe at one time
_LONG = 3600.0  # s; from look to look, if nothing comes
_CAPACITY = 1 << 20  # bytes; what the pipe may hold, where the kernel allows that


class Inlet:
    """A pipe whose bytes are appended to a blob. Any thread may call its methods."""

    def __init__(self, append: Callable[[bytes], object]) -> None:
        """`append` is called with what comes, by one thread at a time.

        Raises:
            OSError: no descriptor is left.
            RuntimeError: no thread can be started.
        """
        self._append = append
        self._lock = threading.RLock()  # held while bytes are taken from the pipe and appended
        self._failure: BaseException | None = None
        with fork_lock:  # a child that is forked now would keep the pipe open for ever
            self._out, write_end = os.pipe2(os.O_CLOEXEC)
            self.fd: int = write_end
            """Where to write; -1 once it is closed."""
            try:
                self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                os.close(self._out)
                os.close(self.fd)
                raise
            register(self)
        os.set_blocking(self._out, False)
        with suppress(OSError):  # beyond the user's limit the pipe stays as it is
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _CAPACITY)
        self._is_over = False
        self._thread = threads.Call(self._run, "shmstream-inlet")
        try:
            self._thread.start()
        except RuntimeError:
            self._close_all()
            raise

    def _run(self) -> None:
        both = (self._out, self._bell)
        while not self._is_over:
            greenlets.readable(both, _LONG)
            with self._lock:
                self._take()

    def _take(self) -> None:
        """Append what the pipe has now; note its end, and a failure."""
        while not self._is_over:
            try:
                data = os.read(self._out, _STEP)
            except BlockingIOError:
                return
            try:
                if data:
                    self._append(data)
                    continue
            except BaseException as error:  # noqa: BLE001  the writer's thread raises it
                self._failure = error
            self._is_over = True
            os.eventfd_write(self._bell, 1)
            out, self._out = self._out, -1
            os.close(out)

    def settle(self) -> None:
        """Append what was written to the pipe before now.

        Raises:
            Exception: what `append` raised.
        """
        with self._lock:
            self._take()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Close our end, and wait until no process has the other one; all bytes are appended then.

        Raises:
            Exception: what `append` raised.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        self._thread.join()
        self.close()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Take nothing any more: a process that writes to the pipe gets SIGPIPE. Idempotent."""
        if self._bell < 0:
            return
        self._is_over = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()
        self._close_all()

    def abandon(self) -> None:
        """In a forked child: close the descriptors; the thread is the parent's."""
        self._is_over = True
        self._close_all()

    def _close_all(self) -> None:
        descriptors = self._out, self.fd, self._bell
        self.fd = -1
        self._out = self._bell = -1
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)
