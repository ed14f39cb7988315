"""Which source a blob came from: an extended attribute of its file, for people.

    getfattr -n user.shmstream.source <blob>

The name of a source never has credentials in it. Where the file system has no such attributes,
nobody knows the source.
"""

from __future__ import annotations

import os
from contextlib import suppress

_ATTRIBUTE = "user.shmstream.source"
_LONGEST = 1024  # bytes; ext4 has one block for all attributes of a file


def note_source(fd: int, name: str) -> None:
    """Note that the blob in the file `fd` came from the source of that name."""
    with suppress(OSError):  # there are no attributes here, or no room for one
        os.setxattr(fd, _ATTRIBUTE, name.encode("utf-8", "replace")[:_LONGEST])


def source_of(path: str) -> str | None:
    """The name of the source that the blob at `path` came from; None if it is not known."""
    try:
        noted = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False)
    except OSError:
        return None
    return noted.decode("utf-8", "replace")
