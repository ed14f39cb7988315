"""`RenewedSource`: a source whose address expires, such as a signed URL.

A function gives the address, and gives a fresh one when the server refuses the old one:

    open    ask the function once; open what it gives
            if that is refused as an expired address is (400, 401, 403, 410): ask the function
            again, and open that; if that is refused, too, it is an error

So a download that broke off after its address had expired goes on at the same offset. The content
has the same validator under every address; else the leader begins anew, as with any source.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmstream.errors import SourceError
from shmstream.sources.base import Description, Feed, Source, check_offset, explain, open_at

_EXPIRED = (400, 401, 403, 410)  # HTTP statuses; S3 answers 403, or 400 for an expired token


class RenewedSource:
    """The blob at the address that `renew` returns. Any thread may use it.

    Args:
        renew: returns a URL, a path, or a `Source`. It is called when the blob is first opened, and
            whenever the address has expired.
        as_source: makes a source of what `renew` returns.
    """

    def __init__(self, renew: Callable[[], object], as_source: Callable[[object], Source]) -> None:
        self.renew = renew
        self.name: str = f"<{getattr(renew, '__qualname__', type(renew).__name__)}>"
        self._as_source = as_source
        self._lock = threading.Lock()
        self._source: Source | None = None

    def __repr__(self) -> str:
        return f"RenewedSource({self.name!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.renew, self._as_source)

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """Open what the address leads to; see `Source.open`."""
        check_offset(offset)
        source = self._current(offset)
        try:
            return source.open(offset, validator)
        except SourceError as error:
            if error.status not in _EXPIRED:
                raise
        return self._current(offset, instead_of=source).open(offset, validator)

    def open_part(self, offset: int, end: int, validator: str | None = None) -> Feed:
        """`open` for the bytes before `end` alone, if the source of now can give that."""
        check_offset(offset)
        source = self._current(offset)
        try:
            return open_at(source, offset, validator, end)
        except SourceError as error:
            if error.status not in _EXPIRED:
                raise
        return open_at(self._current(offset, instead_of=source), offset, validator, end)

    @property
    def connections(self) -> int | None:
        """As of the source of now; 1 if there is none yet, or if it gives no parts."""
        source = self._source
        if getattr(source, "open_part", None) is None:
            return 1
        own: int | None = getattr(source, "connections", 0)
        return own

    def describe(self) -> Description:
        """What the source says of the blob.

        Raises:
            SourceError: as `open`; or it can tell nothing without being opened.
        """
        source = self._current(0)
        try:
            return self._describe(source)
        except SourceError as error:
            if error.status not in _EXPIRED:
                raise
        return self._describe(self._current(0, instead_of=source))

    def _describe(self, source: Source) -> Description:
        tell = getattr(source, "describe", None)
        if tell is None:
            reason = "it tells nothing without being opened"
            raise SourceError(source.name, 0, reason, retryable=False)
        described: Description = tell()
        return described

    def _current(self, offset: int, instead_of: Source | None = None) -> Source:
        """The source at the address of now; a fresh one if that is still `instead_of`."""
        with self._lock:
            if self._source is instead_of:  # else another thread has asked for a fresh one already
                try:
                    self._source = self._as_source(self.renew())
                except SourceError:
                    raise
                except Exception as error:  # what the function raises may pass
                    raise explain(error, offset, name=self.name) from error
            assert self._source is not None
            return self._source
