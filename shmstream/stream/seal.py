"""The seal of a blob: an extended attribute of its file, which says that these bytes were verified.

The seal is made of the digest, the inode, the size and the time of the last change. So writing to
the file, replacing it or renaming it to another digest breaks the seal. Reading does not. The seal
cannot tell that a disk has lost bytes by itself: for that all bytes must be read.

    getfattr -n user.shmstream.seal <blob>

The seal is set only when the bytes are on the disk, so a crash leaves no sealed blob without its
bytes. On file systems without extended attributes there are no seals, and every check reads all
bytes.
"""

from __future__ import annotations

import hashlib
import os

_ATTRIBUTE = "user.shmstream.seal"


def seal(fd: int, digest: str) -> None:
    """Note that the bytes of the file `fd` are on the disk, and have that `digest`."""
    try:
        os.setxattr(fd, _ATTRIBUTE, _made_of(os.fstat(fd), digest))
    except OSError:  # there are no attributes here, or no room for one: nothing depends on it
        return


def is_sealed(path: str, facts: os.stat_result, digest: str) -> bool:
    """Whether the file at `path` was sealed with that digest, and not changed since.

    `facts` are the result of `os.stat` for that file.
    """
    try:
        return os.getxattr(path, _ATTRIBUTE, follow_symlinks=False) == _made_of(facts, digest)
    except OSError:
        return False


def _made_of(facts: os.stat_result, digest: str) -> bytes:
    told = f"{digest} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest().encode()
