"""Which status an error means, where nothing but the error is known."""

from __future__ import annotations

from shmstream import errors
from shmstream.asgi.statuses import status_of

STATUSES: list[tuple[errors.ShmstreamError, int]] = [
    (errors.BlobNotFound("k", "f"), 404),
    (errors.WriterStalled("n", 0, 60), 504),
    (errors.SourceError("s", 0, "r", status=404), 502),
    (errors.SourceFailed("n", 0, "r"), 502),
    (errors.ContentChanged("n", 0, "r"), 502),
    (errors.DigestMismatch("n", 0, "r", "a", "b"), 502),
    (errors.SizeMismatch("n", 0, "r", 5, 6), 502),
    (errors.OutOfRoom("n", 0, "r"), 503),
    (errors.TooManyFlights("n", 3), 503),
    (errors.NoFreeSlot("n", 3), 503),
    (errors.BlobAborted("n", 0, "OSError: the disk of this machine"), 503),
    (errors.DamagedPartial("n", 0, "p", "was truncated"), 503),
    (errors.WriterDied("n", 0, "pid 1"), 503),
    (errors.OutOfResources("n", "threads", 11, "no"), 503),
    (errors.StoreUnusable("f", "it is read-only"), 503),
    (errors.DamagedBlob("k", "p", "r"), 503),
    (errors.StreamClosed("n", "this process ends"), 503),
    (errors.ShmstreamError(), 500),
]


def test_statuses() -> None:
    for error, status in STATUSES:
        assert status_of(error) == status, error
