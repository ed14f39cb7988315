"""A file method that is refused says what to do instead."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shmstream import BlobStreamer, InFlightCopier, Store

CHANGES: dict[str, tuple[object, ...]] = {
    "write": (b"x",),
    "writelines": ([b"x"],),
    "truncate": (0,),
}
READS: dict[str, tuple[object, ...]] = {
    "read": (1,),
    "read1": (1,),
    "readinto": (bytearray(1),),
    "readinto1": (bytearray(1),),
    "readline": (),
    "readlines": (),
    "__next__": (),
    "truncate": (),
    "detach": (),
    "seek": (0,),
}
INSTEAD = {
    "stored": "Store.create",
    "in flight": "Store.create",
    "copier": "BlobStreamer",
    "fsspec": "without `shmstream::`",
}


@pytest.fixture
def files(store: Store, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with ExitStack() as closing:
        enter = closing.enter_context
        store.fetch("stored", [b"some"])
        writer = store.create("written")
        closing.callback(writer.abort, "the test is over")
        streamer = enter(BlobStreamer.create(tmp_path / "blob"))
        (tmp_path / "plain").write_bytes(b"some")
        system = fsspec.filesystem("shmstream", target_protocol="file", store=store.folder)
        yield {
            "stored": enter(store.open("stored")),
            "in flight": enter(store.open("written")),
            "copier": enter(InFlightCopier.attach(streamer.name)),
            "fsspec": enter(system.open(str(tmp_path / "plain"))),
            "writer": writer,
        }
    store.remove("stored")


def refusal(method: Callable[..., object], arguments: tuple[object, ...]) -> str:
    with pytest.raises(io.UnsupportedOperation) as caught:
        method(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("method", CHANGES)
def test_a_file_to_read(name: str, method: str, files: dict[str, Any]) -> None:
    told = refusal(getattr(files[name], method), CHANGES[method])
    assert "this file can only be read: " in told
    assert INSTEAD[name] in told


@pytest.mark.parametrize("method", READS)
def test_a_file_to_write(method: str, files: dict[str, Any]) -> None:
    told = refusal(getattr(files["writer"], method), READS[method])
    hints = {"truncate": "create it anew", "detach": "write to it directly", "seek": "temporary"}
    assert hints.get(method, "`Store.open`") in told


@pytest.mark.parametrize("name", ["in flight", "copier"])
def test_the_descriptor_of_a_file_that_grows(name: str, files: dict[str, Any]) -> None:
    assert "read it, or `copy`" in refusal(files[name].fileno, ())
