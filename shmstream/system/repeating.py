"""`Repeating`: calls a function again and again in a thread, while there is something to do.

    wake      have it called soon; starts a thread, unless there is one
    thread    let some time pass, if the maker wants that; call it; wait for as long as it says, and
              call it again; end if it says nothing, and nobody has called `wake` meanwhile
    close     call it no more

A `wake` during a pause does not shorten it: the next call comes at its end in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmstream.system.threads import Call


class Repeating:
    """Any thread may call the methods. A forked child makes another one."""

    def __init__(self, call: Callable[[], float | None], name: str, *, delay: float = 0.0) -> None:
        """`call` returns after how many seconds it is to be called again; None: at the next `wake`.

        `name` is that of the thread. `delay`: seconds from a `wake` to the call, so that one call
        does for what wakes it meanwhile, and takes no processor from what is just beginning.
        """
        self._call = call
        self._name = name
        self._delay = delay
        self._changed = threading.Condition()  # guards all below
        self._is_due = False
        self._is_closed = False
        self._thread: Call | None = None  # while it looks whether the call is due

    def wake(self) -> None:
        """Have it called soon; during a pause, at its end. Does not wait.

        If no thread can be started, the next `wake` tries it again.
        """
        with self._changed:
            self._is_due = True
            if self._is_closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = Call(self._run, self._name)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be started
                self._thread = None

    def _run(self) -> None:
        with self._changed:
            if self._delay and not self._is_closed:
                self._changed.wait(self._delay)
        while True:
            with self._changed:
                if self._is_closed or not self._is_due:
                    self._thread = None
                    return
                self._is_due = False
            pause = self._call()
            with self._changed:
                if pause is not None and not self._is_closed:
                    self._changed.wait(pause)
                    self._is_due = True

    def close(self, timeout: float) -> None:
        """Call it no more; wait until a call that is under way has returned. Idempotent.

        Waits `timeout` seconds at most.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            running = self._thread
        if running is not None:
            running.join(timeout)
