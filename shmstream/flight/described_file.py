"""`DescribedFile`: a growing file whose size its source tells, where no control block tells it."""

from __future__ import annotations

import os

from shmstream.errors import StreamClosed
from shmstream.sources.base import Description
from shmstream.storage.layout import Place
from shmstream.stream.growing_file import GrowingFile, View


class DescribedFile(GrowingFile):
    """What a reader of the file of another container and a reader beside its leader share."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._fd = -1
        self._published = 0
        self.position: int = 0
        self.is_complete: bool = False
        """Whether all bytes of the blob are here and verified, as this reader last saw it."""
        self.description: Description = Description()
        """What the source says of the blob; empty until that is known."""

    @property
    def size(self) -> int | None:
        """Bytes of the blob; None until the size is known."""
        return self._published if self.is_complete else self.description.size

    @property
    def published(self) -> int:
        """Bytes that can be read without waiting."""
        return self._published

    def view(self) -> View:
        """How far the blob is now, without waiting."""
        published = self.published
        fd = self._fd if published or self.is_complete else -1
        return View(published, self.size, self.is_complete, fd)

    def duplicate(self) -> int:
        """Another descriptor of the file, to read published bytes; the caller closes it."""
        self._check_open()
        return os.dup(self._fd)

    def _check_open(self) -> None:
        if self._fd < 0:
            raise StreamClosed(self._place.key, "it was closed")

    def close(self) -> None:
        """Close the descriptor; no other process notices. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()
