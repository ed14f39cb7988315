"""`top`, on a terminal and without one."""

from __future__ import annotations

import json
import re

import pytest

from shmstream import Store
from shmstream.storage.flights import followers_of
from tests.cli.conftest import DIGEST, Begin, Run, Show, flying
from tests.support.commands import Running
from tests.support.interpreters import wait_until
from tests.support.origin import Origin


def test_a_rate_and_an_eta(begin: Begin, run: Run, store: Store, origin: Origin) -> None:
    """Of a flight that takes minutes."""
    slow = origin.serve("/slow", seed=1, size=16 << 20, rate=64 << 10)
    begin("fetch", slow, "-q")
    flying(store)
    [told] = json.loads(run("top", "--json", "--interval", "1")[1])
    assert 0 < told["rate"] < 1 << 20
    assert told["eta"] == pytest.approx((told["size"] - told["published"]) / told["rate"])


def test_a_flight_is_told_once(run: Run, flight: tuple[Running, Running], store: Store) -> None:
    leader, follower = (each.process.pid for each in flight)
    wait_until(lambda: [each.lag for each in followers_of(store.flights()[0])] == [0])
    [told] = json.loads(run("top", "--json", "--interval", "0.1")[1])
    assert told["rate"] == 0
    assert told["eta"] is None
    assert (told["key"], told["leader"]["pid"]) == (DIGEST, leader)

    for once in ([], ["--once"]):
        code, out, errors = run("top", *once, "--interval", "0.1")
        assert (code, errors) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"1 flight, 0 bytes/s, in {store.folder}"
        assert lines[1:3] == ["", DIGEST]
        assert re.match(r"  streaming, 19\d.\d KiB of 293.0 KiB, 6\d %, 0 bytes/s$", lines[3])
        assert lines[4].startswith(f"  leads    pid {leader} (")
        assert re.match(rf"  follows  pid {follower} \(.*\), lag 0 bytes$", lines[5])


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 0)])
def test_top_on_a_terminal(
    show: Show, flight: tuple[Running, Running], origin: Origin, key: bytes, code: int
) -> None:
    top = show("top", "--interval", "0.1")
    top.wait_for(r"shmstream top: 1 flight, 0 bytes/s, in /")
    top.wait_for(rf"follows +pid {flight[1].process.pid}")
    origin.release()
    for each in flight:
        assert each.finish()[0] == 0
    top.wait_for(r"shmstream top: 0 flights, in /")
    top.press(key)
    assert top.finish() == code
    top.check()


def test_top_without_anything(run: Run, store: Store) -> None:
    assert run("top") == (0, f"0 flights, in {store.folder}\n", "")
    assert run("top", "--json")[1] == "[]\n"
