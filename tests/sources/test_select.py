"""Which source a user means."""

from __future__ import annotations

import io
import mmap
import sys
from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from shmstream.sources.base import Feed
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.http import HTTPSource
from shmstream.sources.local import FileSource, IterableSource, PathSource
from shmstream.sources.select import _takes_offset, as_sources
from tests.support.feeds import read


def test_as_sources(path: Path) -> None:
    class Mine:
        name = "mine"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            return Feed(iter([b"mine"]), validator=validator, offset=offset)

    with path.open("rb") as file, path.open("rb") as other:
        for given, kinds in (
            ("http://localhost/", [HTTPSource]),
            ("HTTPS://localhost/", [HTTPSource]),
            ("memory://a", [FsspecSource]),
            ("zip://a::http://localhost/b", [FsspecSource]),
            ("some/path", [PathSource]),
            ("c:/path", [PathSource]),
            (path, [PathSource]),
            (file, [FileSource]),
            (io.BytesIO(), [FileSource]),
            (b"bytes", [FileSource]),
            (memoryview(b"bytes"), [FileSource]),
            (Mine(), [Mine]),
            ([b"some", b"bytes"], [IterableSource]),
            ((each for each in [b""]), [IterableSource]),
            (repeat(b"", 2), [IterableSource]),
            (["http://localhost/", path, Mine(), file], [HTTPSource, PathSource, Mine, FileSource]),
            ((path, other), [PathSource, FileSource]),
        ):
            assert [type(source) for source in as_sources(given)] == kinds  # type: ignore[arg-type]
    assert read(as_sources(b"bytes")[0], 2) == b"tes"
    with mmap.mmap(-1, 10) as mapped:
        assert read(as_sources(mapped)[0]) == bytes(10)


def plain(offset: int, validator: str | None = None) -> None: ...
def by_keyword(*rest: int, offset: int = 0, **more: int) -> None: ...
def any_number(*offset: int) -> None: ...
def none() -> None: ...


class Opener:
    """Functions that are bound to an object, or to a class, or to nothing."""

    def one(self, offset: int) -> None: ...
    def other(self, mode: str) -> None: ...
    def of_itself(offset) -> None: ...  # noqa: N805
    @classmethod
    def of_class(cls, offset: int) -> None: ...
    @staticmethod
    def of_none(offset: int) -> None: ...
    def __call__(self, offset: int) -> None: ...


OPENER = Opener()


@pytest.mark.parametrize(
    "function",
    [
        plain, by_keyword, none, wraps(plain)(any_number), partial(plain, 1),
        partial(plain, offset=1), partial(plain, validator=""), lambda: None, OPENER, OPENER.one,
        OPENER.other, OPENER.of_itself, OPENER.of_class, OPENER.of_none, Opener.one, Opener.other,
        Path().open, io.BytesIO().read, open,
    ],
)  # fmt: skip
def test_which_functions_take_an_offset(function: Callable[..., object]) -> None:
    assert _takes_offset(function) == ("offset" in signature(function).parameters)


@pytest.mark.parametrize("mistake", [5, None, object(), io.StringIO("text"), ["path", b"bytes"],
                                     [b"bytes", 5], [["path"]], Path, 1.5])  # fmt: skip
def test_what_is_no_source(mistake: Any) -> None:
    with pytest.raises(TypeError, match="a source"):
        as_sources(mistake)


def test_a_list_of_nothing_is_no_source() -> None:
    with pytest.raises(ValueError, match="at least one"):
        as_sources([])


@pytest.mark.parametrize(
    ("url", "room", "package"),
    [("http://localhost/", "http", "urllib3"), ("s3://a/b", "fsspec", "fsspec")],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, room: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for each in (room, "http_client"):
        monkeypatch.delitem(sys.modules, f"shmstream.sources.{each}")
    with pytest.raises(ImportError, match=rf"pip install 'shmstream\[{room}\]'"):
        as_sources(url)
