"""Results are remembered, and long texts of clients and upstreams fill no memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from shmstream.asgi import conditions, messages, protocol
from shmstream.asgi.remembering import remembered

LONG = 64 << 10
MOST = 4 << 20


def encode(text: str) -> object:
    return messages._encoded("location", text)


def write(text: str) -> object:
    return protocol._line(b"location", text.encode())


def tag_by_key(text: str) -> object:
    return conditions.etag_of(f"sha256:{text}")


def tag_by_validator(text: str) -> object:
    return conditions.etag_of("a name", f'"{text}"')


def held_by(call: Callable[[], object]) -> int:
    """Bytes that are held after `call` and were not held before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ask", [encode, write, tag_by_key, tag_by_validator])
def test_long_texts_are_not_held(ask: Callable[[str], object]) -> None:
    def ask_all() -> None:
        for number in range(1000):
            ask(f"{number:0{LONG}}")

    assert held_by(ask_all) <= MOST


def test_many_short_texts_are_not_held() -> None:
    def ask_all() -> None:
        for number in range(100_000):
            encode(str(number))

    assert held_by(ask_all) <= MOST


@pytest.mark.parametrize("ask", [encode, write, tag_by_validator])
def test_a_result_is_remembered(ask: Callable[[str], object]) -> None:
    assert ask("short") is ask("short")


def test_it_works_on_after_it_has_forgotten() -> None:
    called = []

    @remembered
    def twice(text: str, other: str | None = None) -> str:
        called.append(text)
        return text + (other or text)

    assert [twice("a"), twice("a")] == ["aa", "aa"]
    assert [twice("a", "b"), twice("a", other="b")] == ["ab", "ab"]
    assert called == ["a"] * 3
    assert twice("b" * (2 << 20)) == "b" * (4 << 20)
    assert [twice("a"), twice("a")] == ["aa", "aa"]
    assert called[4:] == ["a"]
