"""Which answer an error becomes."""

from __future__ import annotations

import json
import pickle

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    ContentChanged,
    DamagedBlob,
    DigestMismatch,
    FailureKind,
    OutOfRoom,
    ShmstreamError,
    SizeMismatch,
    SourceError,
    SourceFailed,
    TooManyFlights,
    WriterStalled,
)
from shmstream.registry.api.errors import Code, Refusal, because

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"
LONG_DIGEST = f"sha512:{HEX}{HEX}"


ERRORS: list[tuple[ShmstreamError, int, Code]] = [
    (SourceError("s", 0, "r", status=404), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=404), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=410), 404, Code.BLOB_UNKNOWN),
    (SourceFailed("n", 0, "r", status=401), 401, Code.UNAUTHORIZED),
    (SourceFailed("n", 0, "r", status=403), 403, Code.DENIED),
    (SourceError("s", 0, "r", status=429, retry_after=17.2), 429, Code.TOOMANYREQUESTS),
    (SourceFailed("n", 0, "r", status=429), 429, Code.TOOMANYREQUESTS),
    (SourceFailed("n", 0, "r", status=503), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r", status=400), 400, Code.UNSUPPORTED),
    (SourceFailed("n", 0, "r", status=400, said="NAME_INVALID: x"), 400, Code.NAME_INVALID),
    (SourceError("s", 0, "r", status=451, said="no: x"), 451, Code.UNSUPPORTED),
    (SourceError("s", 0, "r", status=407), 502, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", status=302), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r"), 502, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.TIMEOUT), 504, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.CONNECT_TIMEOUT), 504, Code.UNAVAILABLE),
    (SourceError("s", 0, "r", kind=FailureKind.UNREACHABLE), 502, Code.UNAVAILABLE),
    (SourceFailed("n", 0, "r", kind=FailureKind.TIMEOUT), 504, Code.UNAVAILABLE),
    (WriterStalled("n", 0, 60), 504, Code.UNAVAILABLE),
    (DigestMismatch("n", 0, "r", "a", "b"), 502, Code.UNAVAILABLE),
    (SizeMismatch("n", 0, "r", 5, 6), 502, Code.UNAVAILABLE),
    (ContentChanged("n", 0, "r"), 502, Code.UNAVAILABLE),
    (OutOfRoom("n", 0, "r"), 503, Code.UNAVAILABLE),
    (BlobAborted("n", 0, "OSError: the disk of this machine"), 503, Code.UNAVAILABLE),
    (TooManyFlights("n", 3), 503, Code.UNAVAILABLE),
    (BlobNotFound("k", "f"), 404, Code.BLOB_UNKNOWN),
    (DamagedBlob("k", "p", "r"), 503, Code.UNAVAILABLE),
]


def test_what_errors_become() -> None:
    """Also after the error came from another process: pickled, or as text in a control block."""
    for error, status, code in ERRORS:
        copied = because(pickle.loads(pickle.dumps(error)), Code.BLOB_UNKNOWN)
        assert (copied.status, copied.code) == (status, code)
        if isinstance(error, BlobAborted):
            told = because(BlobAborted.from_text(error.to_text(1000)), Code.BLOB_UNKNOWN)
            assert (told.status, told.code) == (status, code)
        refusal = because(error, Code.BLOB_UNKNOWN, {"digest": DIGEST})
        assert (refusal.status, refusal.code) == (status, code), error
        (told,) = json.loads(refusal.body())["errors"]
        assert (told["code"], told["detail"]) == (code, {"digest": DIGEST})
        assert told["message"]
        assert ("retry-after" in refusal.headers) == (status in (429, 503))
        assert ("www-authenticate" in refusal.headers) == (status == 401)
        if isinstance(error, SourceError) and error.retry_after:
            assert refusal.headers["retry-after"] == "18"


def test_a_refusal_stays_what_it_is() -> None:
    refusal = Refusal(400, Code.NAME_INVALID, "no")
    assert because(refusal, Code.BLOB_UNKNOWN) is refusal
