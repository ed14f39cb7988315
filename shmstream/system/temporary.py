"""A temporary folder of one process, which the next such process removes if the first was killed.

The folder holds a file with a kernel lock on it. The kernel frees the lock when the process ends,
however it ends, so a folder whose lock is free belongs to nobody.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shmstream.system.locks import WHOLE_FILE, KernelLock

_LOCK = "lock"
_GRACE = 60.0  # s; a folder without a lock file may be one that is just being made


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A folder whose name begins with `prefix`, there inside and removed afterwards.

    Removes first the folders of this user with that prefix whose processes were killed.
    """
    _remove_abandoned(prefix)
    folder = tempfile.mkdtemp(prefix=prefix)
    try:
        with closing(KernelLock(os.path.join(folder, _LOCK), os.O_CREAT)) as lock:
            lock.try_acquire(WHOLE_FILE)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
