"""`GuardedCopier`: reads a flight, and gives only bytes of the blob that was asked for.

A caller may ask for a name with a digest or a size. There is one flight of that name, and it may
have begun for a caller that asked for no digest, or for another one. So what a reader gets depends
on what the flight verifies, as its control block tells:

    the digest that was asked for      the bytes as they come: the writer withholds the last chunk
    no digest was asked for, and the   the bytes as they come; this reader withholds the last chunk,
      flight has the size asked for      because the writer may have been asked for no size
    anything else                      no byte. At the end of the flight `Unproved` is raised; then
                                         `Blob` joins again, and compares the blob in the store

    this reader, which asks for D               a flight that verifies nothing
    1 attaches; waits, and gives nothing        goes on
                                                commits: the blob is in the store
    2 raises `Unproved`; the blob joins again
    3 compares the stored blob with D: right:   another flight of that name may begin here: then
      reads it; wrong: leads a flight of its      3 finds it, and goes to 1
      own, which replaces the blob

If the leader dies in 1, this process may take over. It then leads the flight as it is, because
other readers are in the middle of it, and still goes through 2 and 3 itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmstream.errors import StreamBroken
from shmstream.stream.control_block import UNKNOWN, State
from shmstream.stream.growing_file import View
from shmstream.stream.reader import InFlightCopier

if TYPE_CHECKING:
    from shmstream.storage.layout import Place


@dataclass(eq=False)
class Unproved(StreamBroken):
    """The flight has ended, and has not shown that its blob is the one that was asked for."""


class GuardedCopier(InFlightCopier):
    """An `InFlightCopier` for a caller that asked for a digest or a size; call `expect` first."""

    _digest = b""
    _size: int | None = None

    def expect(self, digest: str, size: int | None) -> None:
        """What was asked for: `digest` as `Place.digest`, and the size in bytes, or None."""
        self._digest, self._size = digest.encode() if ":" in digest else b"", size

    @property
    def _is_proved(self) -> bool:
        """Whether the flight brings what was asked for, or else ends without a commit."""
        block = self._block
        return self._digest in (b"", block.digest) and self._size in (None, block.size)

    @property
    def is_of_another(self) -> bool:
        """Whether the flight brings something else than what was asked for, or verifies less."""
        block = self._block
        return self._digest not in (b"", block.digest) or (
            self._size is not None and block.size not in (UNKNOWN, self._size)
        )

    def _free(self) -> int:
        """Bytes that may be given before the commit."""
        if not self._is_proved:
            return 0
        if self._digest or self._size is None:
            return UNKNOWN  # the writer withholds the last chunk itself
        chunk = self._block.chunk_size
        return max(self._size - 1, 0) // chunk * chunk

    @property
    def is_unproved(self) -> bool:
        """Whether the flight has ended with a blob that it has not shown to be the right one."""
        return super().is_complete and not self._is_proved

    # What it shows.

    @property
    def is_complete(self) -> bool:
        """Whether the blob is committed, and is the one that was asked for."""
        return super().is_complete and self._is_proved

    @property
    def size(self) -> int | None:
        """Bytes of the blob that was asked for; None until the size is known."""
        return super().size if self._is_proved else None

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        if self.is_complete:
            return super().published
        return min(super().published, self._free())

    @property
    def metadata(self) -> bytes:
        """What the writer stored about the source, if it is the source of what was asked for."""
        return super().metadata if self._is_proved else b""

    def view(self) -> View:
        """How far the blob is now, without waiting."""
        view = super().view()
        if not self._is_proved:
            return View()
        if view.is_complete:
            return view
        published = min(view.published, self._free())
        return view._replace(published=published, fd=view.fd if published else -1)

    # How it waits.

    def wait(self, want: int = UNKNOWN) -> int:
        """Wait until `want` bytes can be read, or the blob is complete; how many can.

        Raises:
            StreamBroken: as `readinto`; or `Unproved`.
        """
        self._check_open()
        return self._wait_proved(want)

    def _readable(self, want: int) -> int:
        self._check_open()
        try:
            self._wait_proved(want)
        except StreamBroken:
            if self.published <= self.position:
                raise  # after the bytes that may be given
            return self.published
        return min(super()._readable(min(want, self.published)), self.published)

    def _wait_proved(self, want: int) -> int:
        while True:
            is_over = self._block.state == State.COMMITTED  # before the other fields (I3)
            seen = self._block.load_published()
            if is_over and not self._is_proved:
                raise Unproved(self.name, self.position)
            if is_over or min(seen, self._free()) >= want:
                return self.published
            self._ask(seen, seen + 1)


def attach(
    place: Place,
    timeout: float,
    *,
    stall_timeout: float | None = None,
    subscribes_late: bool = False,
    sources: int = 0,
    ahead: bool = False,
) -> InFlightCopier:
    """A reader of the flight of `place`, which is guarded if more was asked for than the key says.

    The other arguments, and the errors, are those of `InFlightCopier.attach`.
    """
    kind = GuardedCopier if place.expects else InFlightCopier
    copier = kind.attach(
        place.stream,
        timeout=timeout,
        stall_timeout=stall_timeout,
        subscribes_late=subscribes_late,
        sources=sources,
        ahead=ahead,
    )
    if place.expects and isinstance(copier, GuardedCopier):
        copier.expect(place.digest, place.size)
    return copier
