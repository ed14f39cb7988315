"""Claims the name and the path of a stream, and removes what dead processes have claimed.

Making and removing a stream are two sides of one protocol, so both are in this module. A name in
`/dev/shm` and a partial file are claimed in the same way:

    creator                                   reaper (of a stream that looks dead)
    1 create the file, which must not exist   1 open the file
    2 lock it                                 2 lock it; if that fails, it is alive: leave it
    3 check that the name still leads to it;  3 check that the name still leads to it; if not,
      if not, a reaper was faster: go to 1      another process was faster: stop
    4 fill it                                 4 unlink what it names, the segment last

Between 1 and 2 the creator has no protection, and a reaper may get the lock. Then the creator finds
in 3 that its file has lost its name, and begins again. After 3 only the holder of the lock may
unlink, so the name stays. A SIGKILL at any line frees the lock, and the next reaper finishes. It
still finds everything that the segment names, because the segment is unlinked last.

A dead stream that can be succeeded is not removed by a process that wants to lead: the stream may
have begun, and lost its writer, after that process looked for a stream.

The partial file that a dead writer left is unlinked, never truncated for a new stream. So readers
that still have it open keep their bytes (I2).

The partial file of a resumable stream stays, and with its block goes the proof that no other
program has written to it. So a reaper that removes such a block first calls the functions that
keep notes of partial files (`when_removed`). If they fail, the stream stays for the next reaper.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress

from shmstream.errors import DamagedSegment, ShmstreamError
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import HEADER_SIZE, Block, State, is_path
from shmstream.stream.listing import listing
from shmstream.stream.partial import (
    REAPER,
    Patience,
    is_untouched,
    partial_path,
    remove_partial,
)
from shmstream.stream.segment import Segment
from shmstream.stream.subscribers import remove_doorbells
from shmstream.system.files import GONE, LACKING, says_none
from shmstream.system.locks import KernelLock, file_identity, is_held

_log = logging.getLogger("shmstream")

_HEADER = (0, HEADER_SIZE)  # what a writer locks
_LIFE = (1, HEADER_SIZE - 1)

_SWEEP_INTERVAL = 60.0  # s; a sweep lists all shared memory of the host
_YOUNG = 10_000_000_000  # ns; so long a dead leader's stream waits for the next call
_swept = float("-inf")  # when this process swept last

Spare = Callable[[Block, KernelLock], bool]
"""Decides from its block and its locks whether a dead stream is left alone."""

_notes: list[Callable[[str, int, bytes, str], None]] = []


def when_removed(note: Callable[[str, int, bytes, str], None]) -> None:
    """Call `note` when a dead resumable stream is removed, and its partial file stays.

    Its arguments are the path where the blob would be, the partial file, which is locked and has
    only bytes of the blob, and the stream's metadata and digest, or only the digest's algorithm.
    If it raises an OSError, the stream stays.
    """
    _notes.append(note)


def is_read(block: Block, lock: KernelLock) -> bool:
    """Whether the stream has a live reader."""
    return lock.is_held_elsewhere(block.slots_span)


def can_go_on(block: Block, lock: KernelLock) -> bool:  # noqa: ARG001
    """Whether a new writer can take a dead stream over, at the offset `published`."""
    if not block.resumable or block.state != State.STREAMING:
        return False
    try:
        partial = KernelLock(partial_path(block.file_path))
    except OSError as error:
        if error.errno in GONE:
            return False
        raise  # the answer is not known now, as when descriptors have run out
    try:
        return file_identity(partial.fd) == block.file
    finally:
        partial.close()


def claim_segment(
    name: str, size: int, spare: Spare | None = None
) -> tuple[Segment, KernelLock] | None:
    """Make a new segment of that name and lock its header; None if a live writer has the name.

    The stream that a dead writer left under that name is removed first. If `spare` leaves it alone
    (see `reap`), the answer is None too.

    Raises:
        StreamExists: a process has been removing that stream for a second: it may be stopped.
        DamagedSegment: the segment of that name was not made by this version.
        PermissionError: it belongs to another user.
        OSError: shared memory or descriptors have run out; nothing is left behind.
    """
    patience = Patience(name, "the name")
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
            # A reaper may be removing it. A caller with `spare` always inspects the stream anyway.
            if not reap(name, spare):
                if spare is not None or not is_abandoned(name):
                    return None
                patience.wait()
        except OSError as error:
            error.with_traceback(None)  # frees a half-made mapping, and its descriptor with it
            with suppress(OSError, DamagedSegment):
                reap(name, spare)
            raise


def is_abandoned(name: str) -> bool:
    """Whether the segment of that name has no live writer, or is gone.

    A reaper may be removing it.
    """
    try:
        lock = KernelLock(segment.path_of(name), os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        return not lock.is_held_elsewhere(_LIFE)
    finally:
        lock.close()


# Removing what dead processes have left (I8).


def reap(name: str, spare: Spare | None = None) -> bool:
    """Remove the stream of that name if its writer is dead; whether the name is gone.

    Segment, doorbells and partial file are removed. A committed blob stays, and so does the partial
    file of a resumable stream. If `spare` says so, a dead stream is left alone. A dead stream that
    is spared because it has readers (`is_read`) is removed by the reader that leaves last:

        one reader                              another reader
        1 gives its slot back
        2 locks byte 0, sees the other's slot
                                                1 gives its slot back
                                                2 cannot lock byte 0: a reaper is at work
        3 unlocks byte 0, checks again: it
          is the last reader, and goes to 2

    Raises:
        DamagedSegment: the segment was not made by this version; it is left alone.
        PermissionError: it belongs to another user.
    """
    path = segment.path_of(name)
    try:
        lock = KernelLock(path, os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        facts = os.fstat(lock.fd)
        if not stat.S_ISREG(facts.st_mode):
            raise DamagedSegment(name, "it is no file")
        if facts.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"user {facts.st_uid} owns it", name)
        while lock.try_acquire(REAPER):
            if not lock.is_at(path):
                return True
            block = Block.read(lock.fd, name)
            ready = facts.st_size > 0 and block.validate(name, facts.st_size)
            if not (ready and spare is not None and spare(block, lock)):
                _remove_remains(block, lock.fd if ready else None)
                segment.unlink(name)
                return True
            lock.release(REAPER)
            if spare(block, lock):
                break
        return False
    finally:
        lock.close()


def reap_unread(name: str) -> None:
    """Remove the stream of that name if no live process writes or reads it; never fails.

    Every reader of a flight calls this after it has left, and a writer after it has handed over:

        writer                                  last reader
        1 sees a reader, hands over: publishes
                                                1 gives its slot back
                                                2 cannot lock byte 0: the writer is alive
        2 unlocks the header
        3 no process reads the stream: removes it
    """
    with suppress(ShmstreamError, OSError):  # the next `sweep` tries again
        reap(name, is_read)


def _remove_remains(block: Block, fd: int | None) -> None:
    """Remove what the block of a dead stream names, in the segment's file `fd`.

    None: it is half-made, and names at most a path.
    """
    ready = fd is not None
    if ready and block.resumable and block.state == State.STREAMING:
        try:
            _vouch(block)
        except OSError as error:
            if error.errno in LACKING:
                raise  # the stream stays: only its block knows how much of the file is right
            _log.warning("%s: nobody vouches for it: %s", block.file_path, error.strerror)
    if is_path(block.path) and block.state != State.COMMITTED and not block.resumable:
        try:
            partial = partial_path(block.file_path)
            remove_partial(partial, only=block.file if ready else None)
        except OSError as error:
            if error.errno not in GONE:
                raise  # else a link or a folder lies there, which is not ours
    if fd is not None:
        remove_doorbells(block.token, Block.read_ever_taken(fd, block.slots))


def _vouch(block: Block) -> None:
    """Tell that the partial file of a dead stream has the bytes of the blob, if that is sure."""
    path = block.file_path
    try:
        lock = KernelLock(partial_path(path), os.O_NONBLOCK)
    except OSError as error:
        if says_none(error):  # nobody vouches for it
            return
        raise
    try:
        is_it = block.changed > 0 and file_identity(lock.fd) == block.file
        if is_it and lock.try_acquire(REAPER) and is_untouched(lock.fd, block):
            for note in _notes:
                note(path, lock.fd, block.metadata, block.digest.decode())
    finally:
        lock.close()


def sweep(but: str = "", spare: Spare = is_read) -> list[str]:
    """Remove what dead processes of this user have left on this host; names of what was removed.

    This removes dead streams without readers, with their doorbells and partial files, and doorbells
    whose stream is gone. It touches nothing that is alive, nothing that this version of shmstream
    did not make, not the stream of the name `but`, and no dead stream that `spare` leaves alone (by
    default those with readers). It never blocks, and any process may call it at any time. It lists
    the shared memory of the host, once if there is no doorbell without a stream, else twice (see
    `listing`). `BlobStreamer.create` calls it, at most once a minute.
    """
    global _swept
    _swept = time.monotonic()
    there = listing()
    names = segment.names(there)
    removed, tokens = _reap_all(names, but, spare)
    lonely = [each for each in doorbell.names(among=there) if _is_unknown(each[0], tokens)]
    if lonely:  # those of a stream that began during the listing are none
        more, tokens = _reap_all(set(segment.names()).difference(names), but, spare)
        removed += more
    removed += [
        bell for token, bell in lonely if _is_unknown(token, tokens) and doorbell.unlink(bell)
    ]
    return removed


def _is_unknown(token: int, tokens: set[int] | None) -> bool:
    """Whether no stream has that token; None: a stream has one that is not known."""
    return tokens is not None and token not in tokens


def _reap_all(names: Iterable[str], but: str, spare: Spare) -> tuple[list[str], set[int] | None]:
    """Remove the dead streams of these names; which were removed, and the tokens of the others.

    The tokens are None if one of them cannot be known: then any doorbell may be of that stream.
    """
    removed: list[str] = []
    tokens: set[int] | None = set()
    for name in names:
        try:
            is_alive, token = _look_at(name)
            if not (is_alive or name == but) and reap(name, spare):
                removed.append(name)
            elif tokens is not None:
                tokens.add(token)
        except FileNotFoundError:  # removed meanwhile
            continue
        except (DamagedSegment, OSError):  # perhaps another version's, or it cannot be opened now
            tokens = None
    return removed, tokens


def sweep_again(but: str) -> None:
    """`sweep`, unless this process has just done so: it opens every stream of the host.

    A stream is spared that another process may be about to go on with: its leader was killed
    moments ago, perhaps before anything but the stream told how much of its file can be trusted.
    """
    if time.monotonic() - _swept >= _SWEEP_INTERVAL:
        sweep(but, spare=_is_wanted)


def _is_wanted(block: Block, lock: KernelLock) -> bool:
    if is_read(block, lock):
        return True
    is_young = time.monotonic_ns() - block.progress < _YOUNG
    return is_young and can_go_on(block, lock)


def _look_at(name: str) -> tuple[bool, int]:
    """Whether a stream has a live writer, and the token in its doorbells' names; takes no lock."""
    fd = os.open(segment.path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return is_held(fd, _LIFE), Block.read_token(fd, name)
    finally:
        os.close(fd)
