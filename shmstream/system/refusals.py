"""The methods of a file that some of our files refuse, each with what to do instead.

Without that, the classes of `io` raise an error that has no text, or only the method's name.
"""

from __future__ import annotations

import io
from typing import NoReturn


def refuse_text(data: object) -> None:
    """Raises:
    TypeError: it is a text, where bytes are to be written.
    """
    if isinstance(data, str):
        raise TypeError(
            "a blob is written in bytes, not text: encode the text, or write it to an "
            "`io.TextIOWrapper` of the blob"
        )


class ReadOnly(io.IOBase):
    """A file that cannot be changed."""

    _instead: str
    """What to do instead."""

    def _refuse_change(self) -> NoReturn:
        raise io.UnsupportedOperation(f"this file can only be read: {self._instead}")

    def write(self, *_: object) -> NoReturn:
        """Raises:
        UnsupportedOperation: always.
        """
        self._refuse_change()

    def truncate(self, *_: object) -> NoReturn:
        """Raises:
        UnsupportedOperation: always.
        """
        self._refuse_change()


class AppendOnly(io.BufferedIOBase):
    """A file that is written from its beginning to its end, and read through other objects."""

    def _refuse_reading(self) -> NoReturn:
        raise io.UnsupportedOperation(
            "this file can only be written: to read it, also before its end, open its key with "
            "`Store.open`"
        )

    def read(self, *_: object) -> NoReturn:
        """Raises:
        UnsupportedOperation: always.
        """
        self._refuse_reading()

    def read1(self, *_: object) -> NoReturn:
        """Raises:
        UnsupportedOperation: always.
        """
        self._refuse_reading()

    def truncate(self, *_: object) -> NoReturn:
        """Raises:
        UnsupportedOperation: always, because readers may have read what was written.
        """
        raise io.UnsupportedOperation(
            "this file cannot be cut: its readers may have read what was written; `abort` it, and "
            "create it anew"
        )

    def detach(self) -> NoReturn:
        """Raises:
        UnsupportedOperation: always.
        """
        raise io.UnsupportedOperation(
            "this file has no buffer, and no raw file under it: write to it directly"
        )
