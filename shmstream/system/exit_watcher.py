"""Tells at once that another process of this host has ended, however it ended.

    watch(identity, call)    have `call` called when that process has ended

A process that leads a flight may be killed at any moment. Its followers find its lock free when
they look, a few times a second. The kernel can tell them sooner: a *pidfd*, a descriptor of a
process, becomes readable when the process has ended. One thread waits for the pidfds of all
processes that this process watches.

The call is only a hint to look at the lock. A missing call costs a pause until the next look. So it
does no harm that there is no pidfd for a process of another pid namespace or on an old kernel, or
that a pid is used again by another process.

    a watcher                              the watched process
    1 open a pidfd of the process
                                           ends. The kernel frees its locks, then makes its
                                           pidfds readable
    2 look at its lock

If the process ends before 1, there is no pidfd, or it is readable already: the call comes. If it
ends after 1, the call comes too. So no end is missed, and the lock is free when the call comes.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from shmstream.system import greenlets, threads
from shmstream.system.process import Identity, after_fork, fork_lock, track


class Watch:
    """One interest in the end of one process."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._watched: _Watched | None = None
        self.has_ended: bool = False
        """Whether the process has ended. It is stored before the call."""

    def close(self) -> None:
        """After this, nothing is called any more. Idempotent."""
        with fork_lock:
            watched, self._watched = self._watched, None
            if watched is not None:
                watched.watches.discard(self)
                if not watched.watches:
                    _watcher.forget(watched)

    def _tell(self) -> None:
        self._watched = None
        self.has_ended = True
        self._call()


class _Watched:
    """One process, and each `Watch` of it."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.watches: set[Watch] = set()
        self.fd = os.pidfd_open(identity.pid)
        track(self)

    def close(self) -> None:
        os.close(self.fd)


class _Poll:
    """What one thread waits with. It is told by `end` that nothing is watched any more."""

    def __init__(self) -> None:
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self.epoll = select.epoll()
        except BaseException:
            os.close(self._end)
            raise
        self.epoll.register(self._end, select.EPOLLIN)
        track(self)

    def end(self) -> None:
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        self.epoll.close()
        os.close(self._end)


class _Watcher:
    """All watched processes, and the thread that waits. `fork_lock` guards everything here.

    A thread that has this lock may take it again, and must be able to: the garbage collector may
    close a reader, and with it a `Watch`, at any line.
    """

    def __init__(self) -> None:
        self._poll: _Poll | None = None  # while a process is watched
        self._by_identity: dict[Identity, _Watched] = {}
        self._by_fd: dict[int, _Watched] = {}

    def add(self, identity: Identity, watch: Watch) -> None:
        """Watch one more process, or a process that is watched already.

        Raises:
            ProcessLookupError: it has ended.
            OSError: there is no pidfd, or no descriptor is free.
            RuntimeError: no thread can be started.
        """
        watched = self._by_identity.get(identity)
        if watched is None:
            watched = _Watched(identity)
            try:
                (self._poll or self._start()).epoll.register(watched.fd, select.EPOLLIN)
            except BaseException:
                watched.close()
                raise
            self._by_identity[identity] = self._by_fd[watched.fd] = watched
        watched.watches.add(watch)
        watch._watched = watched

    def _start(self) -> _Poll:
        poll = _Poll()
        try:
            threads.Call(lambda: self._run(poll), "shmstream-exits").start()
        except BaseException:
            poll.close()
            raise
        self._poll = poll
        return poll

    def _run(self, poll: _Poll) -> None:
        while True:
            try:
                ready = poll.epoll.poll()
            except ValueError:  # closed: a signal handler raised while this thread was started
                return
            with fork_lock:
                for fd, _ in ready:
                    watched = self._by_fd.get(fd)
                    if watched is not None and _is_readable(fd):
                        for watch in [*watched.watches]:
                            if watch._watched is watched:  # else it has just been closed
                                watch._tell()
                        self.forget(watched)
                if self._poll is not poll:
                    poll.close()
                    return

    def forget(self, watched: _Watched) -> None:
        """Watch this process no more. The last one ends the thread."""
        if self._poll is None or self._by_fd.get(watched.fd) is not watched:
            return
        del self._by_fd[watched.fd], self._by_identity[watched.identity]
        self._poll.epoll.unregister(watched.fd)
        watched.close()
        if not self._by_fd:
            self._poll.end()
            self._poll = None

    def abandon(self) -> None:
        """In a forked child, which has neither the thread nor the descriptors: begin anew."""
        self._poll = None
        self._by_identity.clear()
        self._by_fd.clear()


def _is_readable(fd: int) -> bool:
    """Whether its process has ended: by now the number may be another process's descriptor."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


_watcher = _Watcher()
after_fork(_watcher.abandon)


def watch(identity: Identity, call: Callable[[], object]) -> Watch | None:
    """Have `call` called when that process has ended; None if this process would not be told.

    The call comes from another thread, or at once if the process has ended already. It must neither
    block nor raise. Does not block.
    """
    me = Identity.mine()
    if identity.pid == me.pid or identity.namespace != me.namespace:
        return None
    if not hasattr(os, "pidfd_open") or greenlets.pausing() is not None:
        return None  # there is nothing to wait for, or no thread to wait
    found = Watch(call)
    with fork_lock:
        try:
            _watcher.add(identity, found)
        except ProcessLookupError:
            found._tell()
        except (OSError, RuntimeError, OverflowError):
            return None  # an old kernel, a sandbox, something has run out, or it is no process id
    return found
