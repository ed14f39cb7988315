"""A mistake in an argument is told at once: its name, what it may be, and what was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import BlobStreamer, InFlightCopier, Retries, SourceFailed, Store
from shmstream.asgi import InFlightResponse
from shmstream.sources import HTTPSource, IterableSource
from shmstream.system.buffers import buffers
from tests.support.interpreters import PATIENCE

TEXTS: list[object] = ["three", [], object(), True]
NUMBERS: list[object] = [*TEXTS, -1]
OF_STORE: dict[str, list[object]] = {
    "folder": [5, "a\0b", [5]],
    "max_bytes": ["apples", -1, 1.5, True, "-1"],
    "durable": ["yes", 2, None],
    "verify": ["yes", 2, None],
    "hash_named": ["yes", 2, None],
    "retries": [3, "three", 2.5, True, Retries, {"attempts": 3}],
    "connections": [0, 65, 1.5, "two", True],
    "chunk_size": [0, -1, 1.5, "64k", None, 1 << 64],
    "max_subscribers": [0, -1, 1 << 40, 1.5, "many", None],
    "publish_bytes": [-1, 1.5, "much", None],
    "publish_interval": [-1, float("nan"), float("inf"), "soon", None],
    "max_flights": [0, -1, 1.5, "many", True],
    "max_pass_through": [-1, 1.5, "many", None],
    "shared_group": ["staff", 5],
    "cluster": ["redis://host", 5],
    "on_event": ["print", 5],
}
OF_READING: dict[str, list[object]] = {
    "key": [5, None, b"key", ""],
    "source": [
        5,
        2.5,
        True,
        [],
        [5, "https://host/x"],
        {},
        {"https://host/x": 1},
        {b"x": b"y"},
        {"https://host/x"},
        {b"x"},
        frozenset([b"x"]),
        {b"x": 1}.keys(),
    ],
    "digest": [5, ["sha256:00"], {"sha256": "00"}, "sha256", "sha256:00", b""],
    "size": [-1, 1.5, "5", True, 1 << 63],
    "progress": ["yes", 5],
    "stall_timeout": [-1, float("nan"), "soon", True, 10**400],
    "wait_for": [-1, float("nan"), "soon", None, True],
    "connections": [0, 65, 1.5, "two", True],
}
OF_RETRIES: dict[str, list[object]] = {
    "attempts": [0, *NUMBERS, None, 1.5],
    "with_others": [0, *NUMBERS, None, 1.5],
    **{
        name: [*NUMBERS, None, float("nan")]
        for name in ("first_pause", "longest_pause", "least_rate", "slow_for", "outage")
    },
    "on_retry": ["print", 5],
}


def cases(table: dict[str, list[object]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value!r:.20}")
        for name, values in table.items()
        for value in values
    ]


def is_told(call: Callable[..., object], name: str, value: object, /, **others: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**{**others, name: value})
    text = str(caught.value)
    assert type(caught.value) in (TypeError, ValueError)
    assert name in text or name in ("key", "source") or text.startswith("evict takes")
    is_source = isinstance(value, list) or name in (
        "source",
        "headers",
        "auth",
    )  # a source may be long, or a secret
    assert is_source or repr(value)[:20] in text, text


@pytest.mark.parametrize(("name", "value"), cases(OF_STORE))
def test_of_a_store(name: str, value: object, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    is_told(Store, name, value, folder=folder)
    assert not folder.exists()


@pytest.mark.parametrize("method", ["open", "aopen", "fetch"])
@pytest.mark.parametrize(("name", "value"), cases(OF_READING))
def test_of_reading(method: str, name: str, value: object, store: Store) -> None:
    is_told(getattr(store, method), name, value, key="a name", source=[b"x"])
    assert store.flights() == []


def test_of_other_methods(store: Store, tmp_path: Path) -> None:
    source: Any = {"key": "a name", "source": [b"x"]}
    wrong: Any
    values: Any
    for wrong in (5, "", b"x", "a\0b"):
        is_told(store.fetch, "link", wrong, **source)
        is_told(store.snapshot, "folder", wrong, files={})
    for wrong in ("yes", 2, None):
        is_told(store.open, "linger", wrong, **source)
        is_told(store.create, "replace", wrong, key="a name")
    for name, values in {
        "key": ["", 5],
        "size": [-1, "5"],
        "digest": [5],
        "media_type": [5],
    }.items():
        for wrong in values:
            is_told(store.create, name, wrong, **({} if name == "key" else {"key": "a name"}))
    for wrong in (0, -1, 1.5, "many", None):
        is_told(store.fetch_many, "at_once", wrong, sources={})
        is_told(store.snapshot, "at_once", wrong, files={}, folder=tmp_path / "x")
    for wrong in ({"a": "https://host/x"}, {"a": "ab"}, {"a": ("key",)}, {5: ("key", b"x")}):
        with pytest.raises(TypeError, match=r"files is a mapping such as|the name of a file is"):
            store.snapshot(tmp_path / "x", wrong)
    for wrong in (["a"], "a", 5, {"a"}):
        is_told(store.fetch_many, "sources", wrong)
        is_told(store.snapshot, "files", wrong, folder=tmp_path / "x")
    for wrong in (-1, "old", float("nan")):
        is_told(store.gc, "partial_age", wrong)
    for wrong in (-1, "a key", 1.5):
        is_told(store.evict, "max_bytes", wrong)
    assert store.flights() == []
    assert store.check() == []


@pytest.mark.parametrize(("name", "value"), cases(OF_RETRIES))
def test_of_retries(name: str, value: object) -> None:
    is_told(Retries, name, value)


@pytest.mark.parametrize("wrong", [{b"x": 1}, {b"x"}, frozenset([b"x"])], ids=repr)
def test_of_what_gives_bytes(wrong: Any, store: Store, tmp_path: Path) -> None:
    """A dict would give its keys, and a set its elements in any order."""
    for call in (IterableSource, partial(store.open, "a name"), lambda each: list(buffers(each))):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}: pass a list or a tuple"):
            call(wrong)
    with BlobStreamer.create(tmp_path / "blob") as streamer, pytest.raises(TypeError, match="pass"):
        streamer.transfer(wrong)
    with pytest.raises(TypeError, match="not str"):
        IterableSource("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not int"):
        IterableSource(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [["https://host/x"], {1: "https://host/x"}.values()], ids=repr)
def test_of_an_iterable_of_texts(texts: Any, store: Store) -> None:
    """Only a list or a tuple is looked into: another iterable can perhaps be read only once."""
    with pytest.raises(SourceFailed, match="gives str, not bytes; a list of sources is a list"):
        store.fetch("a name", iter(texts))


def test_of_headers() -> None:
    secret: Any
    for secret in ([("X-A", "b")], "X-A: b", {"X-A": 5}, {b"X-A": "b"}, {"X-A": None}, {"X-A"}):
        for call in (partial(HTTPSource, "http://host/x"), response_with):
            with pytest.raises(TypeError, match="headers is a mapping of texts, such as"):
                call(headers=secret)
    for secret in ({"user": "password"}, {"user", "password"}, ("user",), (5, 6), 5, b"token"):
        with pytest.raises(TypeError, match=r"auth is a pair \(user, password\)") as caught:
            HTTPSource("http://host/x", auth=secret)
        assert "password'" not in str(caught.value)


def response_with(**terms: Any) -> object:
    store: Any = None
    return InFlightResponse(store, "a name", **terms)


def test_of_a_streamer_and_a_copier(tmp_path: Path) -> None:
    of_streamer: dict[str, list[object]] = {
        "path": [5, "", b"x", "a\0b"],
        "name": [5, "", "a/b", "x" * 25],
        "size": [-1, 1.5, "5", True],
        "digest": [5, "sha256:00", "", ["sha256"], {"sha256": "00"}, {"sha256"}],
        "durable": ["yes", 2],
        **{name: OF_STORE[name] for name in ("chunk_size", "max_subscribers", "publish_bytes")},
        "publish_interval": OF_STORE["publish_interval"],
    }
    for name, values in of_streamer.items():
        for value in values:
            is_told(BlobStreamer.create, name, value, path=tmp_path / "blob")
    assert os.listdir(tmp_path) == []
    of_copier: dict[str, list[object]] = {
        "name": [5, None, b"x", "", "a/b"],
        "timeout": [-1, "soon", float("nan"), True],
        "stall_timeout": [-1, "soon", float("nan"), True],
    }
    for name, values in of_copier.items():
        for value in values:
            is_told(InFlightCopier.attach, name, value, **({} if name == "name" else {"name": "x"}))


def test_what_is_right_stays_right(tmp_path: Path) -> None:
    class Number:
        def __index__(self) -> int:
            return 4096

    options: dict[str, Any] = {
        "chunk_size": Number(), "max_bytes": Number(), "durable": 0, "verify": 1,
        "publish_interval": 0, "retries": Retries(first_pause=0), "on_event": print,
    }  # fmt: skip
    store = Store(tmp_path / "store", **options)
    assert store.max_bytes == 4096
    with store.open("a name", [b"x"], stall_timeout=PATIENCE, wait_for=0, size=1) as blob:
        assert blob.read() == b"x"
    InFlightResponse(store, "a name", wait_for=0)
    wrong: Any = 3
    with pytest.raises(TypeError, match=r"such as Retries\(attempts=3\), or None, not 3"):
        Store(tmp_path / "store", retries=wrong)
