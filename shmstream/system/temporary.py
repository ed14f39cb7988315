"""A temporary folder of one process, which the next such process removes if the first was killed.

The folder holds a file with a kernel lock on it. The kernel frees the lock when the process ends,
however it ends, so a folder whose lock is free belongs to nobody.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from contextlib import closing
from pathlib import Path

from shmstream.system.locks import WHOLE_FILE, KernelLock

_LOCK = "lock"
_GRACE = 60.0  # s; a folder without a lock file may be one that is just being made


class TemporaryFolder:
    """A folder whose name begins with `prefix`; `close` removes it.

    The constructor first removes the folders of this user with that prefix whose processes were
    killed.
    """

    def __init__(self, prefix: str) -> None:
        _remove_abandoned(prefix)
        self.path: str = tempfile.mkdtemp(prefix=prefix)
        self._take()

    def _take(self) -> None:
        self._lock = KernelLock(os.path.join(self.path, _LOCK), os.O_CREAT)
        self._lock.try_acquire(WHOLE_FILE)

    def restore(self) -> bool:
        """Make it anew if it is gone; whether it was. Many systems remove old files from /tmp.

        Raises:
            OSError: it cannot be made, or another user has put something there.
        """
        if self._lock.is_at(os.path.join(self.path, _LOCK)):
            return False
        is_new = True
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:  # only files in it were removed
            is_new = False
            facts = os.stat(self.path, follow_symlinks=False)
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
                raise
        self._lock.close()
        self._take()
        return is_new

    def close(self) -> None:
        """Remove it. Idempotent."""
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(prefix + "*"):
        try:
            if folder.stat().st_uid != os.geteuid():
                continue
            with closing(KernelLock(str(folder / _LOCK))) as lock:
                is_abandoned = lock.try_acquire(WHOLE_FILE)
        except FileNotFoundError:  # it is being made or removed, or its process was killed there
            is_abandoned = time.time() - _changed(folder) > _GRACE
        if is_abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()
