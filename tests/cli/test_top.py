"""`top`, on a terminal and without one."""

from __future__ import annotations

import json

import pytest

from shmstream import Store
from tests.cli.conftest import Begin, Run, Show, flying
from tests.support.commands import Running
from tests.support.origin import Origin


def test_a_rate_and_an_eta(begin: Begin, run: Run, store: Store, origin: Origin) -> None:
    slow = origin.serve("/slow", seed=1, size=4 << 20, rate=1 << 20)
    begin("fetch", slow, "-q")
    flying(store)
    [told] = json.loads(run("top", "--json", "--interval", "0.5")[1])
    assert 100_000 < told["rate"] < 4 << 20
    assert 0 < told["eta"] < 40


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
