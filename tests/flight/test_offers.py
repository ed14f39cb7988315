"""Offers: which sources the readers of one process have, and what tells sources apart."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.flight import offers
from shmstream.flight.offers import Offer
from shmstream.sources import FileSource, IterableSource, as_sources
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.http import HTTPSource
from shmstream.sources.select import fingerprint, fingerprints
from tests.support.origin import Origin
from tests.support.stores import digest

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
URL = "https://host/blob?signature=secret"


@pytest.mark.parametrize(
    "source", [URL, "memory://blob", "blob", Path("blob"), [URL, "blob"], HTTPSource(URL)]
)
def test_a_source_is_the_same_before_it_is_made_and_after(source: Any) -> None:
    assert fingerprints(source) == [fingerprint(each) for each in as_sources(source)]
    assert "secret" not in repr(fingerprints(source))


def test_what_tells_sources_apart() -> None:
    with open(os.devnull, "rb") as file:
        things: list[Any] = [
            URL, URL + "2", HTTPSource(URL, auth="token"), HTTPSource(URL, headers={"x": "1"}),
            "memory://a", FsspecSource("memory://a", option=1), "/a", Path("/b"), file, iter([b""]),
            IterableSource([b""]), HTTPSource("https://user:word@host/blob"),
        ]  # fmt: skip
        assert len({fingerprint(each) for each in things}) == len(things)
        assert fingerprint(FileSource(file)) == fingerprint(file)


def test_the_offers_of_a_process() -> None:
    assert offers.crew("a stream") == 0
    none, first, second = Offer(None), Offer(URL), Offer(["/a", "/b"])
    offers.add("a stream", none)
    assert offers.crew("a stream") == 0
    numbers = []
    for offer in (first, first, second):
        offers.add("a stream", offer)
        numbers.append(offers.crew("a stream"))
    assert numbers[0] == numbers[1] != numbers[2]
    tried = {fingerprint(URL), fingerprint("/a")}
    assert [each.name for each in offers.untried("a stream", tried)] == ["/b"]
    offers.add("another", Offer(URL))
    wrong = Offer("ftp9://nothing\0")
    offers.add("a stream", wrong)
    assert len(offers.untried("a stream", tried)) >= 1
    offers.withdraw(second)
    assert offers.crew("a stream") not in (0, *numbers)
    assert offers.untried("a stream", ()) != []
    del none, first, second, offer, wrong
    gc.collect()
    assert offers.crew("a stream") == 0


FOLLOWS = """
import sys, threading, time
from types import SimpleNamespace
from shmstream import Store
from shmstream.flight import offers
is_open = threading.Event()
offers.time = SimpleNamespace(sleep=lambda _: is_open.wait())
folder, key, url = sys.argv[1:]
with Store(folder).open(key, url) as blob:
    assert "shmstream.sources.http" not in sys.modules
    is_open.set()
    until = time.monotonic() + 60
    while "shmstream.sources.http" not in sys.modules and time.monotonic() < until:
        time.sleep(0.01)
    print(blob.role, "shmstream.sources.http" in sys.modules)
"""


def test_a_follower_has_imported_what_a_takeover_needs(store: Store, origin: Origin) -> None:
    """Else all readers would wait for that import when the leader has died."""
    key, url = digest(1, MIB), origin.serve("/blob", seed=1, size=MIB)
    origin.change("/blob", stall_after=MIB // 2)
    with store.open(key, url) as blob:
        assert blob.read1(1)
        told = subprocess.run(
            [sys.executable, "-c", FOLLOWS, store.folder, key, url],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        origin.release()
        blob.wait()
    assert told == "follows True\n"
