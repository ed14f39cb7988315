"""Where bytes come from: a *source* opens at an offset, and gives a *feed* to iterate over.

    source.open(offset, validator) -> Feed    begin there, or at 0 where that cannot be
    for data in feed                          buffers in order, each as soon as its bytes are there

A feed that ends has given the whole blob. Everything else is a `SourceError`, which says how far
the feed came and whether to try again makes sense; the caller decides whether it does. A
*validator* is a text that changes whenever the bytes change. A caller that resumes hands it back,
and gets the blob from its beginning if the content is another one by now.

`local`, `http` and `fsspec` have the sources of this library; `select` tells which of them a user
means. `Source` says what a source of your own has to do, and `conformance` tests it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from shmstream.arguments import whole
from shmstream.errors import FailureKind, SourceError
from shmstream.system.signals import interrupts

if TYPE_CHECKING:
    from typing_extensions import Buffer


# To try again after one of these errors changes nothing.
_HOPELESS = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    ValueError, TypeError, ImportError, NotImplementedError,
)  # fmt: skip
_MEANINGS = {
    FileNotFoundError: "there is no such file: ",
    PermissionError: "permission denied: ",
    IsADirectoryError: "it is a directory: ",
    NotADirectoryError: "a part of its path is no directory: ",
    FileExistsError: "it exists: ",
}
_MOST_CONNECTIONS = 64
_LARGE = 64 << 20  # bytes; so large a blob comes over several connections if nobody says otherwise
_HOPELESS_NUMBERS = frozenset((errno.ELOOP, errno.ENAMETOOLONG, errno.EBADF))

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What may stand before "::" in a chain of fsspec: a scheme alone, or a URL that is not of HTTP. In
# the address of an IPv6 host, and after "?" or "#", "::" makes no chain.
_LINK = re.compile(r"(?!https?:)([a-z][\w+.-]*)(://[^\[?#]*)?", re.IGNORECASE)

_log = logging.getLogger("shmstream")


class AskAgain(SourceError):
    """The bytes go on, but not from where they came: ask the source again, at once.

    A source raises it that has its bytes from one of several places, and knows another one. It is
    no failure of the source, so it is not counted, and no pause follows.
    """


class GaveWrongBytes(SourceError):
    """What the source gave before is wrong, as it has found out: the download ends.

    The blob has to be asked for from its first byte on, by another download.
    """


def _nothing_to_close() -> None:
    """The `close` of a feed that holds nothing."""


def _nothing_held() -> float:
    """The `held` of a feed that gives its bytes as they come."""
    return 0.0


class KernelFeed(Protocol):
    """The bytes of a feed, moved to a file by the kernel: they never enter this process."""

    def wait(self, gather: float, enough: int) -> bool:
        """Wait until there are bytes to move; False at the end, when all bytes were moved.

        With `gather` > 0, bytes gather for at most so many seconds, or until `enough` bytes are
        there. After that time it returns True even if none are there.

        Raises:
            SourceError: no bytes came in time, or the source failed.
        """

    def move(self, fd: int, limit: int) -> int:
        """Write the bytes that are there to the file `fd`, at its position; their number.

        At most `limit` bytes. Waits for the file only.

        Raises:
            SourceError: the source fails.
            OSError: the file cannot be written to.
        """


@dataclass
class Feed:
    """An opened source: an iterable of buffers, each valid until the next one is asked for.

    Iterating blocks as long as the source does. A normal end means that the source says that the
    blob is complete. One thread iterates; any thread may call `close`, any number of times. Close
    the feed when done, or use it as a context manager: it may hold a file or a connection.

    Attributes:
        data: the bytes from `offset` on, in buffers that are not empty; raises `SourceError`.
        offset: where in the blob the first byte is: the offset that was asked for, or 0 if the
            content has changed or the source cannot begin anywhere else.
        size: of the whole blob in bytes; None if the source does not say.
        validator: the text with which `Source.open` resumes this very content; None if the source
            has none.
        media_type: as the source declares it; None if it does not.
        close: closes the file or connection that the feed holds.
        by_kernel: another way to the same bytes, or None. The caller takes all bytes in one of the
            two ways.
        end: where in the blob the last byte ends, if the feed is of a part; None: it gives all.
        held: for how many seconds the feed has held bytes back, since it was last called: a limit
            of this side is no slowness of the source.
    """

    data: Iterator[Buffer] = field(repr=False)
    offset: int = 0
    size: int | None = None
    validator: str | None = None
    media_type: str | None = None
    close: Callable[[], None] = field(default=_nothing_to_close, repr=False)
    by_kernel: KernelFeed | None = field(default=None, repr=False)
    end: int | None = None
    held: Callable[[], float] = field(default=_nothing_held, repr=False)

    def __iter__(self) -> Iterator[Buffer]:
        return self.data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Description:
    """What a source says of its blob; None for each fact that it does not say.

    `size` is in bytes. `validator` is a text that changes whenever the bytes change, such as an
    ETag. `media_type` is what the source declares, such as `application/gzip`.
    """

    size: int | None = None
    validator: str | None = None
    media_type: str | None = None

    def to_text(self, limit: int) -> bytes:
        """JSON of at most `limit` bytes; facts that are too long are left out, media type first."""
        facts = dict(vars(self))
        for name in ("", "media_type", "validator"):
            if name:
                facts[name] = None
            if len(text := json.dumps(facts).encode()) <= limit:
                break
        return text

    @classmethod
    def from_text(cls, text: bytes | str) -> Self:
        """The description that `to_text` wrote; an empty description from any other text."""
        try:
            facts = json.loads(text)
            size, *texts = map(facts.get, ("size", "validator", "media_type"))
        except (ValueError, AttributeError, RecursionError):
            return cls()
        good = size is None or (type(size) is int and size >= 0)
        if not (good and all(each is None or isinstance(each, str) for each in texts)):
            return cls()
        return cls(size, *texts)


UNKNOWN = Description()
"""What is said of a blob of which no source has said anything."""


class Source(Protocol):
    """Where the bytes of one blob come from. Any object with these two members is a source.

    It may also have:

    - `describe() -> Description`, which asks for no bytes, and raises as `open`
    - `open_part(offset, end, validator) -> Feed`, which is `open` for the bytes before `end` alone:
      a server that is asked for more sends bytes that nobody reads
    - `connections`, how many connections one blob may come over; it needs `open_part`. None: what
      the call or the store says, or else 8 if the blob has 64 MiB or more. Without it: what the
      call or the store says, or else 1
    - `is_live = True`, if its bytes are made while they are read, and may come slowly
    - `identity`, a text that two sources share only if one can do no better than the other; without
      it, that is the name. It is never shown
    - `expecting(digest) -> Source`, the source for a blob that is known to have this digest

    To write a source:

    - `open` returns a `Feed` as soon as the size and the validator are known. Its `data` gives the
      bytes as they come, and its `close` ends the wait of a thread that iterates, if that can be.
    - Every failure is a `SourceError` with the source's name, the offset that the feed had reached,
      and a `kind`. `retryable=False` if to try again is hopeless. Other exceptions are taken for
      hopeless failures, also those that are no `Exception`, such as `SystemExit`.
    - A feed ends normally only if the whole blob was given. A connection that breaks off is an
      error.
    - A validator is worth having: without it, a resumed download asks for all bytes again and
      compares them. Use a text that the origin changes whenever the bytes change, such as a strong
      ETag; never one that two contents may share.
    - `shmstream.sources.conformance` has tests for all of this, and an example.
    """

    @property
    def name(self) -> str:
        """What people and logs call the source. It never has credentials in it."""

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Begin at `offset` (bytes), provided that the content still has this `validator`.

        If it has another one, or if the source cannot begin there, the feed begins at 0: look at
        its `offset`. Without a validator nothing is compared. Blocks until the source has answered.

        Raises:
            SourceError: the source cannot be opened.
            ValueError: `offset` is negative.
        """


def describe(sources: Iterable[Source]) -> Description | None:
    """The description by the first source that has one; None if no source can describe its blob.

    Raises:
        SourceError: every source that can describe its blob failed; this is the last error.
    """
    failure = None
    for source in sources:
        tell = getattr(source, "describe", None)
        if tell is not None:
            try:
                described: Description = tell()
            except SourceError as error:
                failure = error
            else:
                return described
    if failure is not None:
        raise failure
    return None


def open_at(source: Source, offset: int, validator: str | None, end: int | None = None) -> Feed:
    """`source.open`, for a source that may be foreign code: every exception is a `SourceError`.

    Closing the feed raises none: they are logged. With `end`, no byte from there on is needed. The
    feed may give more; its `end` tells.
    """
    try:
        opens_part = None if end is None else getattr(source, "open_part", None)
        if opens_part is not None:
            feed: Feed = opens_part(offset, end, validator)
        else:
            feed = source.open(offset, validator)
        close = partial(_close, feed.close, source)
        with suppress(AttributeError):  # a feed of another class may not allow it
            feed.close = close
    except SourceError:
        raise
    except BaseException as error:
        raise failure_of(source, error, offset) from error
    return feed


def failure_of(source: Source, error: BaseException, offset: int) -> SourceError:
    """The failure of a source whose own code has raised `error`, also `SystemExit` and the like.

    Raises:
        BaseException: `error` itself, if it is no failure of the source: this process is ending.
    """
    if interrupts(error):
        raise error
    reason = f"{type(error).__name__}: {error}"
    return SourceError(source.name, offset, reason, retryable=False)


def _close(close: Callable[[], None], source: Source) -> None:
    """Close a feed. It may raise, such as a generator that another thread is just in."""
    try:
        close()
    except BaseException as error:  # its connection ends by itself, later
        if interrupts(error):
            raise
        _log.warning("%s: a feed cannot be closed: %s", source.name, repr(error))


def connections_of(source: Source, asked: int | None, size: int) -> int | None:
    """How many connections a blob of `size` bytes may come over from `source`.

    None: nobody has said it, and a large blob may come over several. `asked`: what the call or the
    store says.
    """
    try:
        if getattr(source, "open_part", None) is None:
            return 1
        own: int | None = getattr(source, "connections", 0)
    except Exception:  # noqa: BLE001  a source is code of users
        return 1
    return own or asked or (None if own is None and size >= _LARGE else 1)


def check_connections(connections: object) -> int | None:
    """The same number.

    Raises:
        TypeError, ValueError: it is no number of connections.
    """
    if connections is None:
        return None
    most = _MOST_CONNECTIONS
    return whole("connections", connections, f"between 1 and {most}", 1, most)


def name_hash(source: Source) -> str:
    """A short text that only sources with the name of `source` have. It tells no secret."""
    return hashlib.blake2b(source.name.encode("utf-8", "replace"), digest_size=8).hexdigest()


# What all sources share.


def check_offset(offset: int) -> None:
    """Refuse an offset that is no number of bytes.

    Raises:
        ValueError: `offset` is negative.
    """
    if offset < 0:
        raise ValueError(f"an offset is a number of bytes from the beginning, not {offset}")


def begin(offset: int, size: int | None, asked: str | None, validator: str | None) -> int:
    """Where a feed begins: at `offset` if the validator matches and the blob is that long, else 0.

    `asked` is the validator that the caller handed back, `validator` the current one.
    """
    same = asked is None or asked == validator
    return offset if same and (size is None or offset <= size) else 0


def has_control_characters(text: str) -> bool:
    """Whether `text` has control characters, such as line breaks."""
    return _CONTROL.search(text) is not None


def public(url: str) -> str:
    """`url` for people and logs: without user, password, fragment and the query's values.

    What is no valid URL, and may have credentials anywhere, is not shown.
    """
    first, chained, rest = url.partition("::")
    link = _LINK.fullmatch(first) if chained else None
    if link is not None and ("@" not in rest or _is_url(rest)):
        # What has a colon may be half of a user and a password with "::" in it.
        is_half = "@" in rest and ":" in (link[2] or "")[3:]
        return f"{link[1]}://***::{public(rest)}" if is_half else f"{public(first)}::{public(rest)}"
    if url.isascii() and not any(mark in url for mark in "@?#"):
        return url  # has nothing to hide
    from urllib.parse import urlsplit

    head, separator, rest = url.partition("://")
    if not separator:
        return "***"
    try:
        parts = urlsplit(url)
        if "@" in rest and "@" not in parts.netloc:
            _ = parts.port  # raises where a password has one of "/?#" in it
    except ValueError:
        return f"{head}{separator}***"
    path = rest.partition("#")[0]
    path, question_mark, query = path.partition("?")
    path = path.partition("/")[1] + path.partition("/")[2]
    fields = (part.partition("=") for part in query.split("&"))
    shown = "&".join(name + "=***" if equals else "***" for name, equals, _ in fields)
    netloc = parts.netloc.rpartition("@")[2]
    return f"{head}{separator}{netloc}{path}{question_mark}{shown if query else ''}"


def _is_url(text: str) -> bool:
    """Whether `text` begins as a URL, or as a chain of URLs."""
    return re.match(r"[a-z][\w+.-]*(://|::)", text, re.IGNORECASE) is not None


def explain(error: Exception, offset: int, *, name: str, retryable: bool = True) -> SourceError:
    """The `SourceError` for what went wrong at `offset`; a missing file is not `retryable`."""
    reason, number = str(error), None
    if isinstance(error, OSError):
        # Many file systems of fsspec tell only the path.
        what = next((text for kind, text in _MEANINGS.items() if isinstance(error, kind)), "")
        reason, number = error.strerror or f"{what}{reason}", error.errno
    elif isinstance(error, LookupError | NotImplementedError | AttributeError):
        reason = f"{type(error).__name__}: {reason}"  # by itself that says nothing
    kind = FailureKind.BROKEN
    if isinstance(error, TimeoutError):
        kind = FailureKind.TIMEOUT
    elif isinstance(error, ConnectionRefusedError):
        kind = FailureKind.UNREACHABLE
    hopeless = isinstance(error, _HOPELESS) or number in _HOPELESS_NUMBERS
    return SourceError(
        name, offset, reason or type(error).__name__, retryable and not hopeless, kind=kind
    )


def checked(
    data: Iterator[Buffer],
    offset: int,
    size: int | None,
    explained: Callable[[Exception, int], SourceError],
) -> Iterator[Buffer]:
    """The buffers of `data`; each failure, and an end before or after `size`, is a SourceError.

    `data` begins at `offset` of the blob; `explained` makes the error.
    """
    while True:
        try:
            given = next(data)
        except StopIteration:
            break
        except SourceError:
            raise
        except Exception as error:
            raise explained(error, offset) from error
        try:
            offset += memoryview(given).nbytes
        except TypeError as error:
            what = f"it gives {type(given).__name__}, not bytes"
            hint = "; a list of sources is a list or a tuple" if isinstance(given, str) else ""
            raise explained(TypeError(what + hint), offset) from error
        if size is not None and offset > size:
            raise explained(EOFError(f"it gives more than its {size} bytes"), size)
        yield given
    if size is not None and offset < size:
        raise explained(EOFError(f"it ended {size - offset} bytes short of its {size}"), offset)
