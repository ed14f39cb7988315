"""Which HTTP status an error means, if a request fails before its headers."""

from __future__ import annotations

from shmstream.errors import (
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DigestMismatch,
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


def status_of(error: ShmstreamError) -> int:
    """404, 502 (the source), 503 (this machine), 504 (a stall), or 500 for anything else."""
    return next((status for kind, status in _STATUS_OF if isinstance(error, kind)), 500)
