"""The record of a named blob: the key, the digest that its bytes had, and what its source said.

A blob whose key is a digest has no record: its name says what its bytes are, and more than one
source may have it. A named blob lies at a hash of its key, so only its record can tell the key.
The record is one JSON object in a file beside the blob.

    Record     all of it
    Heading    the key and the digest, for what looks at all blobs of a store: what the source said
               is a JSON object of its own, and stays a text
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from shmstream.sources.base import Description
from shmstream.stream.spelling import is_spelled
from shmstream.system.files import read_with_facts, says_none, write_file

_LONGEST = 1 << 16  # bytes of what a source said
_LARGEST = 1 << 24  # bytes of a record; a key may be long
_DECODER = json.JSONDecoder()


def _read(text: str) -> Any:
    """As `json.loads`, which takes twice as long for the text that `Record.write` writes.

    Raises:
        ValueError: it is no JSON.
    """
    found, end = _DECODER.raw_decode(text)
    return found if end == len(text) else json.loads(text)


class Heading(NamedTuple):
    """What a record says of its blob. `digest` is None until the bytes have been hashed."""

    key: str
    digest: str | None
    said: str
    """What the source said, for `Description.from_text`."""
    facts: os.stat_result
    """Of the file of the record."""

    @classmethod
    def read(cls, path: str) -> Self | None:
        """Of the record in the file at `path`; None if there is none that can be read.

        Raises:
            OSError: it is not known now whether there is one: see `says_none`.
        """
        try:
            text, facts = read_with_facts(path, _LARGEST)
            fields = _read(text.decode())
            key, digest, said = fields["key"], fields["digest"], fields["metadata"]
            if not (isinstance(said, str) and (digest is None or is_spelled(digest))):
                return None
            return cls(str(key), digest, said, facts)
        except OSError as error:
            if says_none(error):
                return None
            raise
        except (ValueError, LookupError, TypeError, RecursionError):
            return None

    @property
    def record(self) -> Record:
        """All of the record."""
        return Record(self.key, self.digest, Description.from_text(self.said))


@dataclass(frozen=True)
class Record:
    """What is recorded of a named blob. `digest` is None until the bytes have been hashed."""

    key: str
    digest: str | None
    metadata: Description

    @staticmethod
    def read(path: str) -> Record | None:
        """The record in the file at `path`; None if there is none that can be read.

        Raises:
            OSError: as `Heading.read`.
        """
        heading = Heading.read(path)
        return None if heading is None else heading.record

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
        write_file(path, json.dumps(facts).encode(), durable=durable)
