"""The record of a named blob: the key, the digest that its bytes had, and what its source said.

A blob whose key is a digest has no record: its name says what its bytes are, and more than one
source may have it. A named blob lies at a hash of its key, so only its record can tell the key.
The record is one JSON object in a file beside the blob.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Self

from shmstream.sources.base import Description
from shmstream.stream.spelling import is_spelled
from shmstream.system.files import open_file, read_file

_LONGEST = 1 << 16  # bytes of what a source said
_LARGEST = 1 << 24  # bytes of a record; a key may be long


@dataclass(frozen=True)
class Record:
    """What is recorded of a named blob. `digest` is None until the bytes have been hashed."""

    key: str
    digest: str | None
    metadata: Description

    @classmethod
    def read(cls, path: str) -> Self | None:
        """The record in the file at `path`; None if there is none that can be read."""
        try:
            facts = json.loads(read_file(path, _LARGEST).decode())
            metadata, digest = Description.from_text(facts["metadata"]), facts["digest"]
            if digest is not None and not is_spelled(digest):
                return None
            return cls(str(facts["key"]), digest, metadata)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def write(self, path: str, *, durable: bool = True) -> None:
        """Store the record in a file at `path`, whole or not at all.

        `durable`: have its bytes on the disk before its name is there.

        Raises:
            OSError: it cannot be written.
        """
        facts = {
            "key": self.key,
            "digest": self.digest,
            "metadata": self.metadata.to_text(_LONGEST).decode(),
        }
        temporary = f"{path}.{os.urandom(4).hex()}"
        fd = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(facts, file)
                file.flush()
                if durable:
                    os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
