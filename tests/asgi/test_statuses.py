"""Which status an error means, where nothing but the error is known."""

from __future__ import annotations

from shmstream import errors
from shmstream.asgi.statuses import shortage, status_of

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
    (errors.StoreUnusable("f", "r"), 503),
    (errors.DamagedPartial("n", 0, "p", "was removed"), 503),
    (errors.WriterDied("n", 0, "w"), 503),
    (errors.BlobAborted("n", 0, "OutOfResources: stream 'n': out of descriptors"), 503),
    (errors.BlobAborted("n", 0, "OSError: [Errno 24] Too many open files"), 503),
    (errors.BlobAborted("n", 0, "MemoryError"), 503),
    (errors.BlobAborted("n", 0, "RuntimeError: can't start new thread"), 503),
    (errors.BlobAborted("n", 0, "RuntimeError: a bug"), 500),
    (errors.BlobAborted("n", 0, "OSError: the disk of this machine"), 500),
    (errors.DamagedBlob("k", "p", "r"), 500),
]


def test_statuses() -> None:
    for error, status in STATUSES:
        assert status_of(error) == status, error


def test_what_this_machine_lacks() -> None:
    lacking: list[BaseException] = [
        OSError(24, "Too many open files"),
        FileNotFoundError(2, "No such file"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        TimeoutError(),
    ]
    for error in lacking:
        found = shortage(error, "sha256:x")
        assert found is not None
        assert (status_of(found), found.name) == (503, "sha256:x")
    for other in (ValueError("x"), RuntimeError("x"), ConnectionResetError(), KeyError("x")):
        assert shortage(other, "k") is None
