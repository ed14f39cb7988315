"""Names of blobs for people: the repository that a blob was last sent from, for the status page.

A store knows digests only. When a worker sends a blob or a manifest, it leaves a note
(`upstreams/notes`), which all workers can read. No decision depends on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from shmstream.errors import OutOfResources
from shmstream.system.threads import in_thread
from shmstream.upstreams.notes import Notes

_REMEMBERED = 4096  # names that this process keeps in memory
_WRITER = ("shmstream-names", 1)  # a thread


class Names:
    """The names of digests. Any thread may ask for them.

    `hides` tells which names are told to nobody.
    """

    def __init__(self, notes: Notes, hides: Callable[[str], bool] = lambda _: False) -> None:
        self._notes = notes
        self._hides = hides
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()  # guards `_known`

    def note(self, digest: str, name: str) -> None:
        """Write a note soon, unless the name is known. For an event loop; does not block."""
        if self._remember(digest, name):
            with suppress(OutOfResources):  # no thread can be started: a name is no reason to fail
                in_thread(partial(self._notes.write, (digest,), name), _WRITER)

    def of(self, digest: str) -> str | None:
        """The last name of `digest`, None if it has none, or is hidden. May read a file."""
        name = self._known.get(digest)
        if name is None and (note := self._notes.read((digest,))) is not None:
            name = note.text
            self._remember(digest, name)
        return None if name is None or self._hides(name) else name

    def _remember(self, digest: str, name: str) -> bool:
        """Remember a name; whether it is new."""
        with self._lock:
            if self._known.get(digest) == name:
                return False
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[digest] = name
            return True
