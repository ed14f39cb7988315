"""The seal of a blob: an extended attribute of its file, which says that these bytes were verified.

It is made of the digest, the inode, the size and the time of the last change, so writing to the
file, putting another one in its place or renaming it to another digest breaks it. Reading does
not. What it cannot tell is a disk that loses bytes by itself: for that all bytes must be read.

    getfattr -n user.shmstream.seal <blob>

It is set once the bytes are on the disk, and never before: a crash leaves no sealed blob without
its bytes. File systems without extended attributes have no seals: there every look is the first.
"""

from __future__ import annotations

import hashlib
import os

_ATTRIBUTE = "user.shmstream.seal"


def seal(fd: int, digest: str) -> None:
    """Note that the bytes of the file `fd`, which are on the disk, have that `digest`."""
    try:
        os.setxattr(fd, _ATTRIBUTE, _made_of(os.fstat(fd), digest))
    except OSError:  # no such thing here, or no room for it: nothing depends on it
        return


def is_sealed(path: str, facts: os.stat_result, digest: str) -> bool:
    """Whether the file at `path`, of which `facts` were taken, has had that digest since."""
    try:
        return os.getxattr(path, _ATTRIBUTE, follow_symlinks=False) == _made_of(facts, digest)
    except OSError:
        return False


def _made_of(facts: os.stat_result, digest: str) -> bytes:
    told = f"{digest} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest().encode()
