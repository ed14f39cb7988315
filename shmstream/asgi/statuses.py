"""Which HTTP status an error means, if a request fails before its headers.

404    there is no such blob, here or at its source (404, 410)
502    the source
503    this machine lacks something, or the store is gone; a later request may succeed
504    nothing comes any more
500    anything else
"""

from __future__ import annotations

from shmstream.errors import (
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DigestMismatch,
    OutOfResources,
    ShmstreamError,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StoreError,
    StreamBroken,
    StreamClosed,
    WriterStalled,
)

_STATUS_OF: tuple[tuple[type[ShmstreamError], int], ...] = (
    (BlobNotFound, 404),
    (WriterStalled, 504),
    (DigestMismatch, 502),
    (SizeMismatch, 502),
    (ContentChanged, 502),
    (SourceFailed, 502),
    (SourceError, 502),
    (StreamBroken, 503),
    (CannotStart, 503),
    (StoreError, 503),
    (StreamClosed, 503),
)
_GONE = (404, 410)
_NO_THREAD = "can't start new thread"


def status_of(error: ShmstreamError) -> int:
    """404, 502 (the source), 503 (this machine), 504 (a stall), or 500 for anything else."""
    if isinstance(error, SourceError | SourceFailed) and error.status in _GONE:
        return 404
    return next((status for kind, status in _STATUS_OF if isinstance(error, kind)), 500)


def status_of_source(error: SourceError | SourceFailed) -> int:
    """What a proxy answers: 504 after a timeout, the source's own 4xx, and else 502."""
    if error.kind.is_timeout:
        return 504
    return error.status if error.status is not None and 400 <= error.status <= 499 else 502


def as_ours(error: BaseException, name: str) -> ShmstreamError | None:
    """`error` if it is an error of ours, else the `shortage` that it tells of; None if neither."""
    return error if isinstance(error, ShmstreamError) else shortage(error, name)


def shortage(error: BaseException, name: str) -> OutOfResources | None:
    """What this machine lacks for `name`, as an error of ours; None if `error` says nothing of it.

    A disk that is gone, no descriptors, no threads, no memory: each of them may be there again at
    the next request. A client that has left is none.
    """
    if isinstance(error, MemoryError):
        return OutOfResources(name, "memory", 0, str(error) or "MemoryError")
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return OutOfResources(name, "threads", 0, _NO_THREAD)
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        what = "what the system gives"
        return OutOfResources(name, what, error.errno or 0, str(error) or type(error).__name__)
    return None
