"""What people call a blob: the repository that it was last given out of, for the status page.

A store knows digests only. Whoever gives a blob or a manifest to a client leaves a note (notes.py),
which all workers may read. It is for people; nothing is decided by it.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from shmstream.registry.notes import Notes

_REMEMBERED = 4096  # names that this process need not read or write again


class Names:
    """The names of digests. Any thread may use it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()  # guards `_known`
        self._thread = ThreadPoolExecutor(1, "shmstream-names")

    def note(self, digest: str, name: str) -> None:
        """Note it, soon, unless that is known. Does not block."""
        if self._remember(digest, name):
            self._thread.submit(self._notes.write, (digest,), name)

    def of(self, digest: str) -> str | None:
        """What it was called last, as far as this process knows. May read a file."""
        name = self._known.get(digest)
        if name is None and (note := self._notes.read((digest,))) is not None:
            name = note.text
            self._remember(digest, name)
        return name

    def _remember(self, digest: str, name: str) -> bool:
        """Whether that is news."""
        with self._lock:
            if self._known.get(digest) == name:
                return False
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[digest] = name
            return True

    def close(self) -> None:
        """Write what is noted, and no more. Idempotent."""
        self._thread.shutdown(wait=False)
