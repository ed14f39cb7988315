"""Every error that shmstream raises, each carrying its facts.

An error is a dataclass: its facts are attributes, its message is made from them, and it survives
pickling, so that a worker can hand it to its parent unchanged. The errors that end a stream also
travel through the control block as text (`to_text`, `from_text`): every reader raises the same
error, with the same facts, as the writer that aborted.

    ShmstreamError
    |-- CannotStart               before there is a stream to speak of
    |   |-- StreamNotFound        no stream of that name
    |   |-- StreamExists          a live writer has that name, or that path
    |   |-- ForeignSegment        the shared memory of that name belongs to another user
    |   |-- DamagedSegment        ... or is no control block of ours
    |   |-- NoFreeSlot            every subscriber slot is taken
    |   |-- TooManyFlights        as many flights as the store allows are in progress
    |   `-- OutOfResources        disk, shared memory or descriptors have run out
    |-- StreamBroken              a stream that will not go on; `offset` tells how far it came
    |   |-- WriterDied            the writer ended without commit and without abort
    |   |-- WriterStalled         no progress for `stall_timeout`; the reader may wait again
    |   |-- DamagedPartial        another program truncated, replaced or removed the file
    |   `-- BlobAborted           the writer gave up, and this is why
    |       |-- SizeMismatch      the source gave more or less than its size
    |       |-- DigestMismatch    the bytes do not have the digest of the key
    |       |-- SourceFailed      no source had the rest of the blob
    |       |-- OutOfRoom         there is no room to keep the blob
    |       `-- ContentChanged    the source has other bytes by now than at the beginning
    |-- SourceError               one source failed once: inside a flight, and from `Source.open`
    `-- StoreError                a store, before there is a flight
        |-- BlobNotFound          the blob is not in the store, and no source was given
        |-- BlobExists            the blob is complete already, so nobody can produce it
        |-- StoreUnusable         the folder cannot hold a store
        `-- DamagedBlob           a complete blob does not have the digest of its key

Misuse (an argument of the wrong kind, a closed object) is a `ValueError` or `TypeError`, as
everywhere in Python. Two kinds of misuse have a class: `IllegalTransition` and `StreamClosed`.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Any


# Control characters, line ends, and characters that turn the direction of a text around: a server
# could use them to hide or forge what people read in a terminal or a log.
def escaped(text: str) -> str:
    """`text` with escapes for unprintable characters: those could move the cursor of a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


_MAY_PASS = (408, 425, 429)  # statuses that say nothing of the blob


def is_refusal(error: BaseException) -> bool:
    """Whether the source has answered that it has no such blob, or does not give it."""
    status = error.status if isinstance(error, SourceError | SourceFailed) else None
    return status is not None and 400 <= status <= 499 and status not in _MAY_PASS


def names(key: str, reason: str) -> bool:
    """Whether `reason`, by sources, names the key already: it is often the URL of a source.

    Sources name a URL without its fragment and without the values of its query, which may be
    secret. So a line that names the source need not repeat them as the key.
    """
    if f"{key} at offset " in reason:
        return True
    place = re.split("[?#]", key, maxsplit=1)[0]
    is_url = "://" in place and place != key
    return is_url and bool(re.search(re.escape(place) + r"(?:\?\S*)? at offset ", reason))


def _rebuild(kind: type[ShmstreamError], facts: dict[str, Any]) -> ShmstreamError:
    return kind(**facts)


@dataclass(eq=False)
class ShmstreamError(Exception):
    """The root: `except ShmstreamError` catches every error of a stream, source or store."""

    @property
    def facts(self) -> dict[str, Any]:
        """The error's attributes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts)


# Before there is a stream to speak of.


@dataclass(eq=False)
class CannotStart(ShmstreamError):
    """A stream cannot be created or attached."""

    name: str


@dataclass(eq=False)
class StreamNotFound(CannotStart):
    """No stream of that name appeared within `waited` seconds."""

    waited: float

    def __str__(self) -> str:
        return (
            f"no stream named {self.name!r} on this host (waited {self.waited:g} s): it was never "
            "created, or its writer has closed it; if it was committed, its file is complete"
        )


@dataclass(eq=False)
class StreamExists(CannotStart):
    """A live writer has that stream name, or is writing to that path."""

    what: str
    writer: str

    def __str__(self) -> str:
        return (
            f"cannot create stream {self.name!r}: {self.what} is held by {self.writer}; "
            "attach to it, wait for it to close, or choose another"
        )


@dataclass(eq=False)
class ForeignSegment(CannotStart):
    """The shared memory of that name belongs to another user, or other users may write to it."""

    reason: str

    def __str__(self) -> str:
        return f"refusing stream {self.name!r}: {self.reason}"


@dataclass(eq=False)
class DamagedSegment(CannotStart):
    """The shared memory of that name is no control block that this version reads."""

    reason: str

    def __str__(self) -> str:
        return (
            f"stream {self.name!r} has no valid control block: {self.reason}; if nothing uses it, "
            f"remove /dev/shm/shms-{self.name}"
        )


@dataclass(eq=False)
class NoFreeSlot(CannotStart):
    """All `max_subscribers` slots are taken by live readers."""

    max_subscribers: int

    def __str__(self) -> str:
        return (
            f"stream {self.name!r} has no free subscriber slot: all {self.max_subscribers} are "
            "taken by live readers; create it with a larger max_subscribers"
        )


@dataclass(eq=False)
class TooManyFlights(CannotStart):
    """The store's `max_flights` are in progress on this host; try again when a flight has ended."""

    max_flights: int

    def __str__(self) -> str:
        return (
            f"{self.name[:200]!r} has to wait: as many flights as this store allows "
            f"({self.max_flights}) are in progress on this host; try again in a moment"
        )


@dataclass(eq=False)
class OutOfResources(CannotStart):
    """The machine has run out of `what`: disk space, shared memory or descriptors."""

    what: str
    number: int
    detail: str

    def __str__(self) -> str:
        return f"{self.name!r}: out of {self.what} ({self.detail})"


_SHORTAGES_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


class Explained:
    """A block of code whose errors are given to `explain`, which raises another error or returns.

    As a generator with `contextmanager`, with a third of the calls: several are in each beginning.
    """

    def __init__(self, explain: Callable[[BaseException], None]) -> None:
        self._explain = explain

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._explain(error)


def naming_shortages(name: str, place: str) -> Explained:
    """Raise `OutOfResources` for an OSError inside that means a shortage of room in `place`."""
    return Explained(partial(name_shortage, name, place))


def naming_shortages_beside(name: str, path: str) -> Explained:
    """As `naming_shortages`, in the folder of `path`, which is taken out only after an error."""
    return Explained(lambda error: name_shortage(name, os.path.dirname(path), error))


def name_shortage(name: str, place: str, error: BaseException) -> None:
    """Raises:
    OutOfResources: `error` means a shortage of room in `place`.
    """
    if not isinstance(error, OSError):
        return
    if error.errno in (errno.EMFILE, errno.ENFILE):
        what = "file descriptors: raise `ulimit -n`, or close some"
    elif error.errno in _SHORTAGES_OF_ROOM:
        what = f"space in {place}"
    else:
        return
    raise OutOfResources(name, what, error.errno, str(error)) from error


def is_for_want_of_room(error: BaseException) -> bool:
    """Whether disk or shared memory is full. The source may still give what cannot be kept here."""
    if isinstance(error, OutOfResources):
        return error.number in _SHORTAGES_OF_ROOM
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES_OF_ROOM
    return isinstance(error, OutOfRoom)


# A stream that will not go on.


@dataclass(eq=False)
class StreamBroken(ShmstreamError):
    """The stream does not go on after `offset`, the number of bytes that this process had."""

    name: str
    offset: int


@dataclass(eq=False)
class WriterDied(StreamBroken):
    """The writer's process ended without commit and without abort."""

    writer: str

    def __str__(self) -> str:
        return (
            f"the writer of {self.name!r} ({self.writer}) died; this reader has "
            f"{self.offset} bytes and the blob is not complete"
        )


@dataclass(eq=False)
class WriterStalled(StreamBroken):
    """No byte came for `seconds`, though the writer is alive. Reading again waits again."""

    seconds: float

    def __str__(self) -> str:
        return (
            f"the writer of {self.name!r} made no progress for {self.seconds:g} s at "
            f"offset {self.offset}; it is alive: read again to go on waiting"
        )


@dataclass(eq=False)
class DamagedPartial(StreamBroken):
    """The file under the stream is not what the writer wrote."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name!r} broke at offset {self.offset}: {self.path} {self.reason}"


@dataclass(eq=False)
class BlobAborted(StreamBroken):
    """The writer gave up after `offset` bytes. The blob will never be complete."""

    reason: str

    def __str__(self) -> str:
        return f"{self.name!r} was aborted after {self.offset} bytes: {escaped(self.reason)}"

    @staticmethod
    def because(reason: str | BaseException, name: str, offset: int) -> BlobAborted:
        """The error for readers of a stream that is aborted for `reason` after `offset` bytes."""
        if isinstance(reason, BlobAborted) and reason.name == name:
            return reason
        if isinstance(reason, BaseException):
            kind = type(reason).__name__
            told = str(reason).removeprefix(f"{name!r}: ").replace(repr(name), "it")
            text = f"{kind}: {told}" if told else kind
            if is_for_want_of_room(reason):
                return OutOfRoom(name, offset, text)
            reason = text
        return BlobAborted(name, offset, reason)

    def to_text(self, limit: int) -> bytes:
        """This error as at most `limit` bytes of JSON; an overlong reason loses its end.

        What the source has said is left out if it does not fit beside the whole reason.

        Raises:
            ValueError: it does not fit without any reason.
        """
        facts = {"error": type(self).__name__, **self.facts}
        kept = len(self.reason)
        while len(text := json.dumps(facts).encode()) > limit:
            if facts.get("said"):
                facts["said"] = ""
                continue
            if kept == 0:
                raise ValueError(f"this error does not fit into {limit} bytes: {facts}")
            kept = max(kept * 3 // 4 - 4, 0)
            facts["reason"] = self.reason[:kept] + "..."
        return text

    @staticmethod
    def from_text(text: bytes) -> BlobAborted:
        """The error that `to_text` wrote.

        Raises:
            ValueError: if it is nothing that `to_text` wrote.
        """
        try:
            facts = json.loads(text)
            kinds = (
                BlobAborted, SizeMismatch, DigestMismatch, SourceFailed, OutOfRoom, ContentChanged,
            )  # fmt: skip
            found = {each.__name__: each for each in kinds}[facts.pop("error")](**facts)
            if not all(isinstance(getattr(found, name), kind) for name, kind in _FACTS.items()):
                raise TypeError("a fact of another type")
            return found
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not the text of an error: {error}") from error


_FACTS = {"name": str, "offset": int, "reason": str}


@dataclass(eq=False)
class SizeMismatch(BlobAborted):
    """The source gave `got` bytes instead of the `expected` number."""

    expected: int
    got: int


@dataclass(eq=False)
class DigestMismatch(BlobAborted):
    """The bytes have the digest `got`, not the `expected` one: they are another blob.

    `got` is empty if that was found before all bytes were there: the node of the cluster that had
    given them has found that they are wrong.
    """

    expected: str
    got: str


class FailureKind(StrEnum):
    """How a source failed."""

    TIMEOUT = "timeout"
    """It gave no answer, or no more bytes, in time."""
    UNREACHABLE = "unreachable"
    """No connection could be made."""
    CONNECT_TIMEOUT = "connect timeout"
    """No connection could be made in time."""
    REFUSED = "refused"
    """It answered, and refused."""
    BROKEN = "broken"
    """Anything else: it broke off, gave other bytes, or is no source of this blob."""

    @property
    def is_timeout(self) -> bool:
        """Whether the time was over."""
        return self in (FailureKind.TIMEOUT, FailureKind.CONNECT_TIMEOUT)

    @property
    def is_without_connection(self) -> bool:
        """Whether there was not even a connection."""
        return self in (FailureKind.UNREACHABLE, FailureKind.CONNECT_TIMEOUT)


def _kind_of(kind: str, status: int | None) -> FailureKind:
    """The kind itself; a source that answered with an HTTP status has refused."""
    known = FailureKind(kind)  # from the control block it comes as text
    return FailureKind.REFUSED if known == FailureKind.BROKEN and status is not None else known


@dataclass(eq=False)
class SourceFailed(BlobAborted):
    """Every source was tried as often as it may be, and none had the rest; `reason` tells each.

    `status` is the HTTP status that the last source answered, None if it answered none; `kind` is
    how the last source failed; `said` is what it said of that. `better` tells a source apart that
    has the blob in another size than its first source told; a new flight may begin with it.
    """

    status: int | None = None
    kind: FailureKind = FailureKind.BROKEN
    said: str = ""
    better: str = ""

    def __post_init__(self) -> None:
        self.kind = _kind_of(self.kind, self.status)

    def __str__(self) -> str:
        name = "the blob" if names(self.name, self.reason) else repr(self.name)
        return f"{name} was aborted after {self.offset} bytes: {escaped(self.reason)}"


@dataclass(eq=False)
class OutOfRoom(BlobAborted):
    """Disk or memory has no room for the rest of the blob. The source may still have it."""


@dataclass(eq=False)
class ContentChanged(BlobAborted):
    """The source has another content by now than at the beginning of the flight.

    The next request begins a new flight, with the new content.
    """


# Sources and stores.


@dataclass(eq=False)
class SourceError(ShmstreamError):
    """A source could not be opened at `offset`, or broke there.

    `retryable`: it may do better in a moment, or in `retry_after` seconds if it said so. `status`
    is the HTTP status of a source that refused, `challenge` the WWW-Authenticate of a 401, `said`
    the beginning of its answer. `kind` is how it failed.
    """

    source: str
    offset: int
    reason: str
    retryable: bool = True
    retry_after: float | None = None
    status: int | None = None
    challenge: str | None = None
    kind: FailureKind = FailureKind.BROKEN
    said: str = ""

    def __post_init__(self) -> None:
        self.source, self.reason = escaped(self.source), escaped(self.reason)
        self.kind = _kind_of(self.kind, self.status)

    def __str__(self) -> str:
        return f"{self.source} at offset {self.offset}: {self.reason}"


@dataclass(eq=False)
class StoreError(ShmstreamError):
    """A store cannot do what its caller asked for."""


@dataclass(eq=False)
class BlobNotFound(StoreError, LookupError):
    """The blob is neither complete nor in flight, and no source was given.

    `waited`: seconds for which this waited until another process would begin it.
    """

    key: str
    folder: str
    waited: float = 0.0

    def __str__(self) -> str:
        how = f"; no process has begun it in {self.waited:g} s" if self.waited else ""
        told = f"{self.key[:200]!r} is not in {self.folder}"
        also = "; a key is a name: give the URL as the source, too" if "://" in self.key else ""
        return f"{told}, and no source was given to get it from{how}{also}"


@dataclass(eq=False)
class BlobExists(StoreError):
    """The blob is complete already, and its producer did not say that it is to be replaced."""

    key: str
    folder: str

    def __str__(self) -> str:
        return (
            f"{self.key[:200]!r} is complete in {self.folder} already: read it, remove it first "
            "(`store.remove(key)`), or create it with replace=True"
        )


@dataclass(eq=False)
class StoreUnusable(StoreError):
    """The folder cannot hold a store."""

    folder: str
    reason: str

    def __str__(self) -> str:
        return f"{self.folder} cannot hold a store: {self.reason}"


@dataclass(eq=False)
class DamagedBlob(StoreError):
    """A complete blob does not have, or has no longer, the digest of its key."""

    key: str
    path: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path} is not the blob {self.key[:100]!r}: {self.reason}; remove the file, and "
            "the next call downloads it anew"
        )


# Misuse.


@dataclass(eq=False)
class IllegalTransition(ShmstreamError, ValueError):
    """The stream's state cannot become the other one; nothing was changed."""

    name: str
    state: str
    to: str

    def __str__(self) -> str:
        return f"stream {self.name!r} is {self.state} and cannot become {self.to}"


@dataclass(eq=False)
class StreamClosed(ShmstreamError, ValueError):
    """The object was closed, or belongs to the process that this process was forked from."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"stream {self.name!r} cannot be used here: {self.reason}"
