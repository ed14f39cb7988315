"""Claiming the name and the path of a stream, and removing what the dead have claimed.

Making and removing a stream are two sides of one protocol, so they stand together here. A name in
`/dev/shm` and a partial file are both claimed in the same way:

    creator                                   reaper (of a stream that looks dead)
    1 create the file, which must not exist   1 open the file
    2 lock it                                 2 lock it: cannot? then it is alive, leave it
    3 does the name still lead to it?         3 does the name still lead to it?
      no: a reaper came in between, go to 1     no: somebody else was faster, done
    4 fill it                                 4 unlink what it names, the segment last

Between 1 and 2 a creator is not yet protected, and a reaper may win the lock; then the creator
finds in 3 that its file has lost its name, and begins again. After 3 only the holder of the lock
may unlink, so the name stays. A SIGKILL at any line frees the lock, and the next reaper finishes:
because the segment goes last, what it names is still found.

A stream that can be succeeded is no remains to those who would lead: it may have begun, and lost
its writer, since they looked.

An inode is never used twice: a partial file that a dead writer left is unlinked, not truncated, so
readers which still have it open keep their bytes (I2).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from shmstream.errors import DamagedSegment
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import HEADER_SIZE, Block, State
from shmstream.stream.partial import REAPER, partial_path, remove_partial
from shmstream.stream.segment import Segment
from shmstream.system.locks import KernelLock, file_identity, is_held

_HEADER = (0, HEADER_SIZE)  # what a writer locks
_LIFE = (1, HEADER_SIZE - 1)

_SWEEP_INTERVAL = 0.1  # s
_swept = float("-inf")  # when this process did last

Spare = Callable[[Block, KernelLock], bool]
"""Whether to leave a dead stream alone, by its block and its locks."""


def is_read(block: Block, lock: KernelLock) -> bool:
    """Whether somebody alive reads a stream."""
    return lock.is_held_elsewhere(block.slots_span)


def can_go_on(block: Block, lock: KernelLock) -> bool:  # noqa: ARG001
    """Whether somebody may succeed a dead stream, and needs no byte of it again."""
    if not block.resumable or block.state != State.STREAMING:
        return False
    try:
        partial = KernelLock(partial_path(os.fsdecode(block.path)))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return False
        raise  # nobody can tell just now
    try:
        return file_identity(partial.fd) == block.file
    finally:
        partial.close()


def claim_segment(
    name: str, size: int, spare: Spare | None = None
) -> tuple[Segment, KernelLock] | None:
    """Make the segment of that name anew and lock its header; None if a live writer has it.

    What a dead writer left under that name is removed; or not, and then it is None, too: `spare` as
    in `reap`.

    Raises:
        DamagedSegment: what has the name is nothing that this version made.
        PermissionError: it belongs to another user.
        OSError: shared memory or descriptors have run out; nothing is left behind.
    """
    while True:
        try:
            mapped = Segment.create(name, size)
            with ExitStack() as undo:
                undo.callback(mapped.close)
                lock = KernelLock.reopen(mapped.fd)
                undo.callback(lock.close)
                if lock.try_acquire(_HEADER) and lock.is_at(segment.path_of(name)):
                    undo.callback(mapped.unlink)  # only the holder of the lock may
                    mapped.reserve()
                    undo.pop_all()
                    return mapped, lock
        except FileExistsError:
            # A reaper may be at it. Who has something spared is to look at what it is in any case.
            if not reap(name, spare) and (spare is not None or not is_abandoned(name)):
                return None
        except OSError as error:
            error.with_traceback(None)  # lets a half-made mapping go, and its descriptor with it
            with suppress(OSError, DamagedSegment):
                reap(name, spare)
            raise


def is_abandoned(name: str) -> bool:
    """Whether the segment of that name has no live writer, or is gone; a reaper may be at it."""
    try:
        lock = KernelLock(segment.path_of(name), os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        return not lock.is_held_elsewhere(_LIFE)
    finally:
        lock.close()


# Removing what the dead have left (I8).


def reap(name: str, spare: Spare | None = None) -> bool:
    """Remove the stream of that name if its writer is dead; False if it is alive.

    Segment, doorbells and partial file go; a committed blob stays, and a resumable stream's
    partial file. A dead stream that is to be spared is left alone too. One that somebody still
    reads (`is_read`) is removed by whoever leaves it last:

        one reader                              another one
        1 lets go of its slot
        2 locks byte 0, sees the other's slot
                                                1 lets go of its slot
                                                2 cannot lock byte 0: somebody reaps
        3 lets go of byte 0, looks again: it
          is the last one, and goes to 2

    Raises:
        DamagedSegment: what has the name is nothing that this version made; it is left alone.
        PermissionError: it belongs to another user.
    """
    path = segment.path_of(name)
    try:
        lock = KernelLock(path, os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        facts = os.fstat(lock.fd)
        if facts.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"user {facts.st_uid} owns it", name)
        while lock.try_acquire(REAPER):
            if not lock.is_at(path):
                return True
            block = Block.read(lock.fd)
            ready = facts.st_size > 0 and block.validate(name, facts.st_size)
            if not (ready and spare is not None and spare(block, lock)):
                _remove_remains(block, ready)
                segment.unlink(name)
                return True
            lock.release(REAPER)
            if spare(block, lock):
                break
        return False
    finally:
        lock.close()


def _remove_remains(block: Block, ready: bool) -> None:
    """Remove what the block of a dead stream names; in one that is half made, perhaps a path."""
    if block.path and block.state != State.COMMITTED and not block.resumable:
        partial = partial_path(os.fsdecode(block.path))
        remove_partial(partial, only=block.file if ready else None)
    for _, bell in list(doorbell.names(block.token)) if ready else []:
        doorbell.unlink(bell)


def sweep(but: str = "") -> list[str]:
    """Remove what dead processes of this user have left on this host; the names of what went.

    Dead streams that nobody reads any more go with their doorbells and partial files, and so do
    doorbells whose stream is gone. Nothing that is alive is touched, nor anything that this
    version of shmstream did not make, nor the stream of the name `but`. Cheap, never blocks, safe
    at any time from any process; `BlobStreamer.create` calls it, though not for each of many
    streams at once.
    """
    global _swept
    _swept = time.monotonic()
    removed = []
    bells = list(doorbell.names())  # before the tokens: no stream is younger than its bells
    tokens = set()
    for name in segment.names():
        try:
            is_alive, token = _look_at(name)
            if is_alive or name == but or not reap(name, is_read):
                tokens.add(token)
            else:
                removed.append(name)
        except DamagedSegment:  # perhaps another version's stream: then its bells are unknown
            bells.clear()
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError:  # it cannot be looked at just now: then its bells are unknown too
            bells.clear()
    removed += [bell for token, bell in bells if token not in tokens and doorbell.unlink(bell)]
    return removed


def sweep_again(but: str) -> None:
    """`sweep`, if this process has not just done so: it looks at every stream that there is."""
    if time.monotonic() - _swept >= _SWEEP_INTERVAL:
        sweep(but)


def _look_at(name: str) -> tuple[bool, int]:
    """Whether a stream has a live writer, and what its doorbells are named by; takes nothing."""
    fd = os.open(segment.path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return is_held(fd, _LIFE), Block.read_token(fd, name)
    finally:
        os.close(fd)
