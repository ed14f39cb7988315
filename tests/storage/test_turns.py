"""One process at a time asks for a URL, and one that dies while it asks holds up nobody."""

from __future__ import annotations

import subprocess
import threading
import time

from shmstream import Store
from shmstream.storage.turns import Turns
from tests.support.commands import PYTHON
from tests.support.interpreters import PATIENCE

HOLD = """
import sys
from shmstream.storage.turns import Turns
turn = Turns(f"{sys.argv[1]}/.shmstream", 1).take("http://a/b")
assert turn is not None
print("taken", flush=True)
sys.stdin.read()
"""


def holder(store: Store) -> subprocess.Popen[str]:
    """A process that has the turn for `http://a/b`."""
    process = subprocess.Popen(
        [*PYTHON, "-c", HOLD, store.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)


def test_a_process_waits_for_its_turn_and_a_dead_one_has_none(store: Store) -> None:
    process = holder(store)
    try:
        assert store.turns(0.05).take("http://a/b") is None  # it waited for long enough
        other = store.turns(PATIENCE).take("http://a/c")
        assert other is not None
        other.close()
        taken = []
        waiting = threading.Thread(
            target=lambda: taken.append(store.turns(PATIENCE).take("http://a/b"))
        )
        waiting.start()
        assert not taken
    finally:
        end(process)
    waiting.join(PATIENCE)
    [turn] = taken
    assert turn is not None
    assert store.turns(0.05).take("http://a/b") is None  # not even for another thread
    turn.close()


def test_without_locks_there_are_no_turns(store: Store) -> None:
    began = time.monotonic()
    assert Turns(f"{store.folder}/none", PATIENCE).take("http://a/b") is None
    assert time.monotonic() - began < PATIENCE
