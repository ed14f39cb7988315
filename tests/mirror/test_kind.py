"""Which paths of clients a mirror takes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shmstream.mirror.kind import Refused, aside, rest_of
from shmstream.mirror.pypi import _largest
from shmstream.mirror.settings import Mirror

MIRROR = Mirror("/hf", "http", "https://huggingface.example")


def rest(path: str) -> str:
    return rest_of({"path": "/hf", "raw_path": path.encode()}, MIRROR)


@pytest.mark.parametrize("path", [
    "/hf%2Fx@evil.example/foo", "/hf%2F@evil.example", "/hf%3A443@evil.example",
    "/hf@evil.example/", "/hf.evil.example/x", "/%68f/x", "/h", "",
])  # fmt: skip
def test_a_path_names_no_other_server(path: str) -> None:
    with pytest.raises(Refused) as caught:
        rest(path)
    assert caught.value.status == 400


@pytest.mark.parametrize("path", [
    "/..", "/a/../b", "/a/%2e%2E/b", "/a%2f..%2fb", "/a%2F%2e%2e/b", "/a\\..\\b", "/a%5c..%5Cb",
    "/a/..%5c..%5cb", "/a/.%2e", "/./a", "/a/%252e%252e/b", "/a/..;x=y/b", "/a%255c..%255cb",
    "/%25252525252e%25252525252e/",
])  # fmt: skip
def test_a_path_does_not_lead_up(path: str) -> None:
    with pytest.raises(Refused) as caught:
        rest(f"/hf{path}")
    assert caught.value.status == 400


@pytest.mark.parametrize("path", [
    "", "/", "/a/b", "/a/resolve/refs%2Fpr%2F1/x", "/a/...", "/a/..b", "/a/b..", "/a/.hidden",
    "/x@y/z:5", "//a/b", "/a%20b%25", "/100%",
])  # fmt: skip
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert rest(f"/hf{path}") == path


def test_large_answers_are_understood_in_a_thread() -> None:
    """So other clients do not wait for that."""
    loop = threading.get_ident()

    def where(size: int) -> int:
        async def ask() -> int:
            return await aside(bytes(size), threading.get_ident)

        return asyncio.run(ask())

    assert where(1000) == loop
    assert where(1 << 20) != loop


def test_only_the_index_of_all_projects_is_large() -> None:
    assert _largest("/simple/x/") == _largest("/x/") == 32 << 20
    assert _largest("/") == _largest("/root/pypi/simple/") == _largest("/simple/") == 256 << 20
