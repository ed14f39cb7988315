"""A lookout: one thread that watches one flight for all asyncio tasks of this process.

Semaphores block, and an event loop must not. The thread waits for bytes, notes how far the blob is,
and tells every event loop once; tasks that wait there go on. Who uses it is counted.

    leads      there was no flight: the thread leads it, and notes how far it has come by itself.
               It ends with the flight, also when nobody uses it any more
    follows    another process leads. The thread has one place among the flight's readers; the last
               user to leave ends it. Should the leader die, this process may come to lead, in a
               thread beside

    lookout                                       task
    1 note the view, or the error                 1 leave a future in its loop's list
    2 does anybody wait in a loop's list?         2 enough? take it back, and go on
      have that loop resolve those who have       3 await it
      enough

Each stores before it looks, so one of them sees the other. Only the loop's own thread changes its
list.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial

from shmstream.errors import StreamClosed, WriterStalled
from shmstream.flight.blob import Blob
from shmstream.flight.flight import Flight, Role
from shmstream.flight.leader import Leader
from shmstream.stream.control_block import State
from shmstream.stream.reader import View
from shmstream.system import process, threads

_TICK = 0.25  # s; how soon a lookout notices that nobody is left, and a task what nobody tells


class Lookout:
    """One thread that watches one flight for all tasks of this process. Counts who uses it."""

    def __init__(self, key: tuple[object, ...], flight_for_all: Callable[[float], Flight]) -> None:
        self._key = key
        self._flight_for_all = flight_for_all
        self._waiting: dict[asyncio.AbstractEventLoop, _Waiting] = {}
        self._joins = 0
        self._fds: list[int] = []
        # The registry's lock guards these:
        self._users = 0
        self._leads = False
        self._ended = False
        self.error: BaseException | None = None
        self.is_open = False
        self.view = View()
        """Its descriptor is open for as long as somebody uses this."""
        self.role = Role.FOLLOWS
        self.media_type: str | None = None
        self.validator: str | None = None
        self.spans: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the size is known."""
        return self.view.size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return self.view.published

    @property
    def is_complete(self) -> bool:
        """Whether there will be no more."""
        return self.view.is_complete

    # Who uses it.

    @classmethod
    def find(cls, key: tuple[object, ...]) -> Lookout | None:
        """The lookout for that flight, which is to be left again; None if it is not in progress."""
        with _registry_lock:
            return cls._find(key)

    @classmethod
    def join(
        cls, key: tuple[object, ...], flight_for_all: Callable[[float], Flight]
    ) -> tuple[Lookout, bool]:
        """As `find`, or else a new one; and whether it is new, and to be started."""
        with _registry_lock:
            if (found := cls._find(key)) is not None:
                return found, False
            lookout = _registry[key] = cls(key, flight_for_all)
            lookout._users = 1
            return lookout, True

    @classmethod
    def _find(cls, key: tuple[object, ...]) -> Lookout | None:
        lookout = _registry.get(key)
        if lookout is None or lookout._ended:
            return None
        lookout._users += 1
        return lookout

    def leave(self) -> None:
        """One user less; the last one ends it, unless others may want what it leads."""
        with _registry_lock:
            self._users -= 1
            if self._users or not (self._ended or self.is_complete or not self._leads):
                return
            fds = self._forget(is_over=self._ended)
            self._ended = True
        _close(fds)

    def _end(self, error: BaseException | None) -> None:
        """The thread is over, or there is none."""
        with _registry_lock:
            self.error = self.error or error
            self._ended = True
            fds = [] if self._users else self._forget(is_over=True)
        _close(fds)
        self._tell()

    def _forget(self, *, is_over: bool) -> list[int]:
        """Nobody is to join it any more; what is to be closed, once its thread is over as well."""
        if _registry.get(self._key) is self:
            del _registry[self._key]
        if not is_over:
            return []
        self.spans.clear()
        fds, self._fds = self._fds, []
        return fds

    # The flight.

    def start(self) -> None:
        """Join the flight, if somebody leads it already, and start the thread.

        Joining takes half a millisecond, less than it takes two threads to tell each other. But
        this may wait for a thread (`threads.is_ready`), which no event loop should.
        """
        if self._ended:  # all have left before it came to this
            self._end(None)
            return
        with ExitStack() as undo:
            try:
                flight = self._flight_for_all(_TICK)
                blob = None
                if (reader := flight.follow()) is not None:
                    blob = Blob(flight, reader=reader)
                    undo.callback(blob.close)
                    self._look_at(blob)
                threads.Call(partial(self._run, flight, blob), "shmstream-lookout").start()
                undo.pop_all()
            except BaseException as error:  # noqa: BLE001  whatever it is, the tasks are to know it
                self._end(error)

    def _run(self, flight: Flight, blob: Blob | None) -> None:
        try:
            if blob is None and (leader := flight.lead()) is not None:
                self._lead(flight.place.key, leader)
            else:
                self._follow(blob or Blob(flight))
        except BaseException as error:  # noqa: BLE001  whatever it is, the tasks are to know it
            self._end(error)
        else:
            self._end(None)

    def _lead(self, key: str, leader: Leader) -> None:
        self.role = Role.LEADS
        with _registry_lock:
            self._leads = not self._ended
        try:
            with suppress(StreamClosed):  # this process has begun to end
                leader.streamer.listen(partial(self._hear, leader))
                self.is_open = True
                self._tell()
                leader.run()
        finally:
            leader.discard()
        if (error := leader.streamer.error) is not None:
            error.name = key
            raise error
        if not self.is_complete:
            raise StreamClosed(key, "its flight was handed over: this process ends")

    def _follow(self, blob: Blob) -> None:
        try:
            while not self._ended and not self.is_complete:
                self._look_at(blob)
                # Tasks may have read so far: what is joined when the leader dies must have that.
                blob.seek(self.published)
                with suppress(WriterStalled):  # each task has its own patience
                    if not self.is_complete:
                        blob.wait_past(self.published)
        finally:
            blob.close()

    def _look_at(self, blob: Blob) -> None:
        view = blob.view()
        if not self.view.published or blob.joins != self._joins:
            self._joins = blob.joins
            if view.fd >= 0:
                self._note_file(os.dup(view.fd))
            said = blob.metadata  # known once the size or a byte is
            self.media_type, self.validator = said.media_type, said.validator
        self.role = blob.role
        self._note(view)

    def _hear(self, leader: Leader) -> None:
        """There is news. No trouble of this process's readers ends the flight."""
        if not self._ended:
            try:
                self._look_at_leader(leader)
            except Exception as error:  # noqa: BLE001  as that there is no descriptor to be had
                # Without a lock: the streamer has its own, and may be closed by a signal's handler.
                self.error = error
                self._ended = True
                self._tell()

    def _look_at_leader(self, leader: Leader) -> None:
        streamer, said = leader.streamer, leader.metadata
        published, is_complete = streamer.published, streamer.state == State.COMMITTED
        if (published or is_complete) and not self._fds:  # until then it may be replaced
            self._fds.append(streamer.reopen())
        self.media_type, self.validator = said.media_type, said.validator
        self._note(View(published, streamer.size, is_complete))

    def _note_file(self, fd: int) -> None:
        if self._fds and os.path.samestat(os.fstat(self._fds[-1]), os.fstat(fd)):
            os.close(fd)
        else:  # the first, or another file after the leader has changed
            self._fds.append(fd)

    def _note(self, view: View) -> None:
        """Note a view, with our own descriptor of its file, and wake the tasks that have enough."""
        before, is_first = self.view, not self.is_open
        self.view = view = view._replace(fd=self._fds[-1] if self._fds else -1)
        self.is_open = True
        # If this process leads, nobody is woken for the size alone: the first bytes follow at once,
        # and tasks that wait for the size look again after a moment anyway.
        if self._leads:
            before = before._replace(size=view.size)
        if is_first or view != before:
            self._tell()

    # Those who wait.

    def _tell(self) -> None:
        """Have the tasks that have enough go on."""
        for loop, waiting in list(self._waiting.items()):
            if waiting.tasks:
                try:
                    loop.call_soon_threadsafe(self._resolve, waiting)
                except RuntimeError:  # it was closed, and its tasks with it
                    waiting.tasks.clear()

    def _resolve(self, waiting: _Waiting) -> None:
        """In the loop's own thread."""
        for enough, future, _ in waiting.tasks[:]:
            if self._ended or enough():
                _go_on(future)

    async def wait(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough`, or for the end, or for a moment."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = _Waiting(loop)
        waits = waiting.add(enough)
        try:
            if not (self._ended or enough()):
                await waits[1]
        finally:
            with suppress(ValueError):  # the loop was closed
                waiting.tasks.remove(waits)


_Waits = tuple[Callable[[], bool], "asyncio.Future[None]", int]


class _Waiting:
    """The tasks of one event loop that wait: for what, in which future, and since which tick.

    One timer for all of them: they are many, and what comes is mostly told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: list[_Waits] = []
        self._loop = loop
        self._ticks = 0
        self._is_ticking = False

    def add(self, enough: Callable[[], bool]) -> _Waits:
        """One more; it goes on after a moment in any case."""
        waits = (enough, self._loop.create_future(), self._ticks)
        self.tasks.append(waits)
        if not self._is_ticking:
            self._tick_later()
        return waits

    def _tick_later(self) -> None:
        self._is_ticking = True
        self._loop.call_later(_TICK / 2, self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        for _, future, since in self.tasks[:]:
            if self._ticks - since > 1:
                _go_on(future)
        self._is_ticking = False
        if self.tasks:
            self._tick_later()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _go_on(future: asyncio.Future[None]) -> None:
    if not future.done():  # else it was cancelled
        future.set_result(None)


# Of this process.

_registry: dict[tuple[object, ...], Lookout] = {}
_registry_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the threads are the parent's."""
    global _registry, _registry_lock
    _registry, _registry_lock = {}, threading.Lock()


process.after_fork(_forget)
