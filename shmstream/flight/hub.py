"""One thread that watches one flight for all asyncio tasks of this process: a `Lookout`.

Waiting for a semaphore blocks, and an event loop must not block. So the thread waits for bytes,
notes how many are published, and tells every event loop once; then the waiting tasks go on. The
`Lookout` counts its users, the open blobs of the tasks.

    leads      there was no flight: the thread leads it, and hears from its own streamer how many
               bytes are published. It ends with the flight, even without users. If it hands over to
               a process with other sources, it follows
    follows    another process leads: the thread takes one slot among the flight's readers, and ends
               when the last user leaves. If the leader dies, this process may lead the flight, in
               another thread

    thread                                        task
    1 note the view, or the error                 1 put a future into the list of its event loop
    2 if a task of a list has enough to read,     2 if there is enough to read, take the future
      have its event loop resolve the futures       back, and go on
      of all tasks that have                      3 await the future

Each stores first and looks afterwards, so one of them sees the other. Only the thread of an event
loop changes the list of that loop. A loop is not woken for a task that would wait on: to wake it
costs more than to look, because the two threads then compete for the interpreter.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial

from shmstream.errors import ShmstreamError, StreamClosed, WriterStalled
from shmstream.flight.blob import Blob
from shmstream.flight.flight import Flight, Role
from shmstream.flight.leader import Leader
from shmstream.flight.naming import name_key
from shmstream.storage.folder import trouble
from shmstream.storage.layout import Place
from shmstream.stream.growing_file import View
from shmstream.stream.reader import InFlightCopier
from shmstream.system import threads
from shmstream.system.process import PerProcess

_TICK = 0.25  # s; after that time a thread checks for users, and a task for untold news


class Lookout:
    """One thread that watches one flight for all tasks of this process. Counts its users."""

    def __init__(self, key: tuple[object, ...], flight_for_all: Callable[[float], Flight]) -> None:
        self._key = key
        self._flight_for_all = flight_for_all
        self._waiting: dict[asyncio.AbstractEventLoop, _Waiting] = {}
        self._joins = 0
        self._fds: list[int] = []
        # The lock of `_lookouts` guards these:
        self._users = 0
        self._leads = False
        self._ended = False
        self._wants_past = False
        self._stop: Callable[[], None] | None = None  # ends a wait for a source of this process
        self.cannot_go_past: bool = False
        """Whether the tasks have to wait for the leader, however long it makes no progress."""
        self.moved: float = 0.0
        """When the leader last made progress, as `time.monotonic`."""
        self.past_since: float = 0.0
        """When this went past the leader, as `time.monotonic`."""
        self.error: BaseException | None = None
        self.is_open: bool = False
        self.view: View = View()
        """Its descriptor stays open until the last user has left."""
        self.role: Role = Role.FOLLOWS
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
        """Whether the whole blob is verified and in the store."""
        return self.view.is_complete

    # Its users.

    @classmethod
    def find(cls, key: tuple[object, ...]) -> Lookout | None:
        """The `Lookout` of that flight, or None. The caller is one more user; it must `leave`."""
        if key not in _lookouts.value:  # without the lock, as if this had come a moment earlier
            return None
        with _lookouts.lock:
            lookouts = _lookouts.value
            return cls._find(lookouts, key)

    @classmethod
    def join(
        cls, key: tuple[object, ...], flight_for_all: Callable[[float], Flight]
    ) -> tuple[Lookout, bool]:
        """As `find`, or else a new one; and whether it is new, so that the caller must start it."""
        with _lookouts.lock:
            lookouts = _lookouts.value
            if (found := cls._find(lookouts, key)) is not None:
                return found, False
            lookout = lookouts[key] = cls(key, flight_for_all)
            lookout._users = 1
            return lookout, True

    @staticmethod
    def _find(lookouts: _Lookouts, key: tuple[object, ...]) -> Lookout | None:
        lookout = lookouts.get(key)
        if lookout is None or lookout._ended:
            return None
        lookout._users += 1
        return lookout

    def leave(self) -> None:
        """One user leaves. The last one ends the thread, unless it leads an incomplete flight."""
        with _lookouts.lock:
            lookouts = _lookouts.value
            self._users -= 1
            if self._users or not (self._ended or self.is_complete or not self._leads):
                return
            fds = self._forget(lookouts, is_over=self._ended)
            self._ended = True
        _close(fds)
        if self._stop is not None:
            self._stop()

    def _end(self, error: BaseException | None) -> None:
        """The thread ends, or could not be started: tell the tasks."""
        self.error = self.error or error  # first, and once more with a name: memory may be short
        self._ended = self._ended or error is not None
        with _lookouts.lock:
            lookouts = _lookouts.value
            self.error = self._named(self.error)
            self._ended = True
            fds = [] if self._users else self._forget(lookouts, is_over=True)
        _close(fds)
        self._tell()

    def _named(self, error: BaseException | None) -> BaseException | None:
        """The error that says what this machine lacks, if that is what `error` means."""
        folder, key = str(self._key[0]), str(self._key[1])
        return trouble(error, key, folder) or error if isinstance(error, Exception) else error

    def _forget(self, lookouts: _Lookouts, *, is_over: bool) -> list[int]:
        """No task can join any more. If the thread is over too, the descriptors to be closed."""
        if lookouts.get(self._key) is self:
            del lookouts[self._key]
        if not is_over:
            return []
        self.spans.clear()
        fds, self._fds = self._fds, []
        return fds

    # The flight.

    def start(self) -> None:
        """Follow the flight if another process leads it already, and start the thread.

        Joining takes half a millisecond, less than handing over to another thread. But this waits
        if a thread has to be started (`threads.is_ready`), and then no event loop should call it.
        """
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001  every error is raised in the tasks
            self._end(error)

    def _start(self) -> None:
        if self._ended:  # all users left before it was started
            self._end(None)
            return
        with ExitStack() as undo:
            flight = self._flight_for_all(_TICK)
            blob = None
            if (reader := flight.follow()) is not None:
                blob = Blob(flight, reader=reader, goes_past=False)
                undo.callback(blob.close)
                self._look_at(blob, blob.view())
            threads.Call(partial(self._run, flight, blob), "shmstream-lookout").start()
            undo.pop_all()

    def _run(self, flight: Flight, blob: Blob | None) -> None:
        try:
            if blob is None and (leader := flight.lead()) is not None:
                if (seat := self._lead(flight.place, leader)) is None:
                    self._end(None)
                    return
                blob = self._join_again(flight, seat)
            self._follow(blob or Blob(flight, goes_past=False))
        except BaseException as error:  # noqa: BLE001  every error is raised in the tasks
            self._end(error)
        else:
            self._end(None)

    def _lead(self, place: Place, leader: Leader) -> InFlightCopier | None:
        """Lead the flight to its end; or a reader of it, if another process leads it now."""
        self.role = Role.LEADS
        with _lookouts.lock:
            self._leads = not self._ended
        try:
            with suppress(StreamClosed):  # `close_all` was faster: this process is ending
                leader.streamer.listen(partial(self._hear, leader, place))
                self.is_open = True
                self._tell()
                leader.run()
        finally:
            leader.discard()
        if leader.seat is not None:
            with _lookouts.lock:
                self._leads = False
            return leader.seat
        if (error := leader.streamer.error) is not None:
            name_key(error, place)
            raise error
        if not self.is_complete:
            raise StreamClosed(place.key, "its flight was handed over: this process ends")
        return None

    def _join_again(self, flight: Flight, seat: InFlightCopier) -> Blob:
        """The blob after this process has given way; `seat` was its reader meanwhile."""
        with ExitStack() as leaving:
            leaving.callback(seat.close)
            flight.before = seat
            reader = flight.join()
            if reader is seat:  # its stream goes on, or was aborted
                leaving.pop_all()
            return Blob(flight, reader=reader, goes_past=False)

    def _follow(self, blob: Blob) -> None:
        try:
            view = blob.view()
            while True:
                self._look_at(blob, view)
                if self._wants_past:
                    self._go_past(blob)
                if self._ended or self.view.is_complete:
                    break
                try:
                    # Tasks may have read all of this. If the leader dies, the blob joins anew at
                    # this position, so the new stream must have the same bytes before it.
                    view = blob.next_view(self.view.published)
                except WriterStalled:  # each task has its own `stall_timeout`
                    view = blob.view()
        finally:
            blob.close()

    def go_past(self) -> bool:
        """Have the thread read on without the leader, which makes no progress. False: it cannot."""
        if self._leads or self.cannot_go_past:
            return False
        self._wants_past = True
        return True

    def _go_past(self, blob: Blob) -> None:
        self._wants_past = False
        self._stop = blob.stop
        if blob.go_past():
            self.past_since = time.monotonic()
            self._look_at(blob, blob.view())
        self.cannot_go_past = True  # once is enough
        self._tell()

    def _look_at(self, blob: Blob, view: View) -> None:
        if not self.is_open:
            self.moved = time.monotonic() - blob.quiet_for
        if not self.view.published or blob.joins != self._joins:
            self._joins = blob.joins
            if view.fd >= 0:
                self._note_file(os.dup(view.fd))
            said = blob.metadata  # it is known as soon as the size or the first byte is known
            self.media_type, self.validator = said.media_type, said.validator
        self.role = blob.role
        blob.offer()
        self._note(view)

    def _hear(self, leader: Leader, place: Place) -> None:
        """The streamer calls this when readers are woken. An error ends this, not the flight."""
        if not self._ended:
            try:
                self._look_at_leader(leader)
            except Exception as error:  # noqa: BLE001  such as a lack of descriptors
                if isinstance(error, ShmstreamError):
                    name_key(error, place)
                # Without the lock of `_lookouts`: a signal handler may be closing the streamer.
                self.error = self._named(error)
                self._ended = True
                self._tell()

    def _look_at_leader(self, leader: Leader) -> None:
        streamer, said = leader.streamer, leader.metadata
        # The streamer holds its lock while it calls `_hear`: nothing changes between these loads.
        published, is_complete = streamer.look()
        if (published or is_complete) and not self._fds:  # before, its file may be replaced
            self._fds.append(streamer.reopen())
        self.media_type, self.validator = said.media_type, said.validator
        self._note(View(published, streamer.size, is_complete))

    def _note_file(self, fd: int) -> None:
        if self._fds and os.path.samestat(os.fstat(self._fds[-1]), os.fstat(fd)):
            os.close(fd)
        else:  # the first file, or another one after the leader has changed
            self._fds.append(fd)

    def _note(self, view: View) -> None:
        """Note a view, with a descriptor of this object, and wake the tasks that have enough."""
        before, is_first = self.view, not self.is_open
        if view.published != before.published:
            self.moved = time.monotonic()
        published, size, is_complete, _ = view
        fd = self._fds[-1] if self._fds else -1
        self.view = View(published, size, is_complete, fd)
        self.is_open = True
        # If this process leads, no task is woken for the size alone: the first bytes follow at
        # once, and tasks that wait for the size look again after a moment anyway.
        if self._leads:
            size = before.size
        if is_first or before != (published, size, is_complete, fd):
            self._tell()

    # The waiting tasks.

    def _tell(self) -> None:
        """Have every event loop wake its tasks that have enough."""
        for loop, waiting in list(self._waiting.items()):
            for enough, _, _ in waiting.tasks[:]:
                if self._ended or enough():
                    try:
                        loop.call_soon_threadsafe(self._resolve, waiting)
                    except RuntimeError:  # the loop was closed, and its tasks are gone
                        waiting.tasks.clear()
                    break

    def _resolve(self, waiting: _Waiting) -> None:
        """Wake the tasks that have enough; the loop's own thread calls this."""
        for enough, future, _ in waiting.tasks[:]:
            if self._ended or enough():
                _go_on(future)

    def _is_quiet(self) -> bool:
        """Whether the thread has ended, or has had no news of bytes for a while."""
        return self._ended or time.monotonic() - self.moved >= _TICK

    async def wait(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough` is true or the thread has ended; 0.4 s at most if no bytes come."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = _Waiting(loop, self._is_quiet)
        waits = waiting.add(enough)
        try:
            if not (self._ended or enough()):
                await waits[1]
        finally:
            try:
                waiting.tasks.remove(waits)
            except ValueError:  # the loop was closed
                pass


_Waits = tuple[Callable[[], bool], "asyncio.Future[None]", int]


class _Waiting:
    """The waiting tasks of one event loop: for each its condition, its future, its first tick.

    One timer serves all of them, because they are many, and are mostly woken without it. It wakes
    those that have enough and were not told. While bytes come, the others can only wait on: they
    may be told only five times a second, and to wake them in between would cost as much again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_quiet: Callable[[], bool]) -> None:
        """`is_quiet`: whether the tasks are to look for themselves, as at a leader that stalls."""
        self.tasks: list[_Waits] = []
        self._loop = loop
        self._is_quiet = is_quiet
        self._ticks = 0
        self._is_ticking = False

    def add(self, enough: Callable[[], bool]) -> _Waits:
        """Add a waiting task. After a moment the timer looks after it."""
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
        is_quiet = self._is_quiet()
        for enough, future, since in self.tasks[:]:
            if self._ticks - since > 1 and (is_quiet or enough()):
                _go_on(future)
        self._is_ticking = False
        if self.tasks:
            self._tick_later()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _go_on(future: asyncio.Future[None]) -> None:
    if not future.done():  # a cancelled task has a future that is done
        future.set_result(None)


_Lookouts = dict[tuple[object, ...], Lookout]
_lookouts: PerProcess[_Lookouts] = PerProcess(dict)  # their threads are not in a forked child
