"""Containers that share a store and not /dev/shm: one download, and every reader streams it.

The processes of the leader's container follow by shared memory. Those of the other container follow
the partial file.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from tests.support import flights
from tests.support.containers import Container, send
from tests.support.interpreters import Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256
from tests.support.stores import digest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"),
    reason="only root can make namespaces",
)

MIB = 1 << 20
SIZE = 4 * MIB
DATA = content(1, SIZE)
KEY = digest(1, SIZE)

Reader = Callable[..., Interpreter]


@pytest.fixture
def reader(start: Callable[..., Interpreter], folder: str) -> Reader:
    """Start a process that reads in a container, step by step; another one may be slow to lead."""

    def begin(
        container: Container, key: str, source: Any, stall_timeout: float | None = None
    ) -> Interpreter:
        arguments = (folder, key, source, stall_timeout)
        return start(flights.read_in_steps_patiently, *arguments, within=container.within)

    return begin


def read(interpreter: Interpreter, count: int) -> dict[str, Any]:
    interpreter.say(count)
    return dict(interpreter.hear())


def partial_file(folder: str) -> Path | None:
    return next(Path(folder).rglob("*.shmstream-partial"), None)


def has_come(folder: str, count: int) -> bool:
    """Whether the partial file has `count` bytes."""
    found = partial_file(folder)
    return found is not None and found.stat().st_size >= count


@pytest.mark.parametrize("key", [KEY, "a name"])
def test_both_stream_one_download(
    key: str,
    reader: Reader,
    containers: tuple[Container, Container],
    origin: Origin,
    folder: str,
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=2 * MIB)
    leader = reader(containers[0], key, url)
    assert leader.hear()["role"] == "leads"
    assert read(leader, MIB)["sha256"] == sha256(DATA[:MIB])
    assert containers[0].streams(), "it leads by its own shared memory"
    follower = reader(containers[1], key, url)
    assert follower.hear()["role"] == "follows"
    heard = read(follower, 2 * MIB - 65536)
    assert heard["sha256"] == sha256(DATA[: 2 * MIB - 65536]), "while it arrives"
    assert heard["size"] == SIZE
    assert heard["told"] >= 2 * MIB - 65536, "progress"
    assert containers[1].streams() == []
    assert Store(folder).is_in_flight(key), "here, too, where neither stream is"
    origin.release()
    assert read(follower, -1)["sha256"] == sha256(DATA[2 * MIB - 65536 :])
    assert read(leader, -1)["sha256"] == sha256(DATA[MIB:])
    leader.finish()
    assert "follows its file" in follower.finish()
    assert len(origin.requests("/blob")) == 1


def test_a_digest_beside_a_name(
    reader: Reader, containers: tuple[Container, Container], origin: Origin, store: Store
) -> None:
    """Nothing tells here what a leader elsewhere verifies: its blob is compared at the end."""
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", count=1, stall_after=2 * MIB)
    leader = reader(containers[0], "a name", url)
    assert leader.hear()["role"] == "leads"
    assert read(leader, MIB)["sha256"] == sha256(DATA[:MIB])
    other = content(2, MIB)
    with (
        store.open("a name", digest=KEY, size=SIZE) as strict,
        store.open("a name", [other], digest=digest(2, MIB)) as another,
    ):
        for each in (strict, another):
            assert (each.role, each.published, each.is_complete) == ("follows", 0, False)
        origin.release()
        assert strict.read() == DATA
        assert another.read() == other
    assert read(leader, -1)["sha256"] == sha256(DATA[MIB:])
    leader.finish()


def test_a_stopped_leader_is_a_stall(
    reader: Reader, containers: tuple[Container, Container], origin: Origin, folder: str
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=2 * MIB)
    leader = reader(containers[0], KEY, url)
    assert leader.hear()["role"] == "leads"
    wait_until(partial(has_come, folder, 2 * MIB))
    send(leader, signal.SIGSTOP)
    follower = reader(containers[1], KEY, None, 0.3)
    assert follower.hear()["role"] == "follows"
    assert read(follower, MIB)["sha256"] == sha256(DATA[:MIB])
    for _ in range(2):
        heard = read(follower, 2 * MIB)
        assert (heard["error"], heard["at"]) == ("WriterStalled", MIB)
        assert KEY in heard["text"]
    past = reader(containers[1], KEY, url, 0.3)
    assert past.hear()["role"] == "follows"
    assert read(past, -1)["sha256"] == sha256(DATA), "it has a source of its own"
    origin.release()
    send(leader, signal.SIGCONT)
    assert read(leader, -1)["sha256"] == sha256(DATA)
    assert read(follower, -1)["sha256"] == sha256(DATA[MIB:])


def test_the_lead_goes_to_the_other_container_and_back(
    reader: Reader, containers: tuple[Container, Container], origin: Origin, folder: str
) -> None:
    """No byte is asked for twice, and every reader that lives reads on."""
    here, there = containers
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    origin.change("/blob", first=1, count=1, stall_after=MIB)
    leader = reader(here, KEY, url)
    assert leader.hear()["role"] == "leads"
    wait_until(partial(has_come, folder, MIB))
    sleeper, second = reader(here, KEY, url), reader(there, KEY, url)
    assert sleeper.hear()["role"] == second.hear()["role"] == "follows"
    patient = reader(there, KEY, None)
    assert patient.hear()["role"] == "follows"
    assert read(sleeper, MIB // 2)["sha256"] == sha256(DATA[: MIB // 2])
    send(sleeper, signal.SIGSTOP)
    send(leader, signal.SIGKILL)
    second.say(-1)
    patient.say(-1)
    wait_until(partial(has_come, folder, 2 * MIB))
    send(sleeper, signal.SIGCONT)
    assert read(sleeper, MIB)["role"] == "follows", "its stream has no writer: it follows the file"
    send(second, signal.SIGKILL)
    heard = read(sleeper, -1)
    assert (heard.get("sha256", heard), heard.get("role")) == (
        sha256(DATA[MIB * 3 // 2 :]),
        "leads",
    )
    assert patient.hear()["sha256"] == sha256(DATA)
    ranges = [each.range for each in origin.requests("/blob")]
    assert ranges == [None, f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    sleeper.finish()
    patient.finish()
    assert here.streams() == there.streams() == [], "also of the killed"
    assert KEY in Store(folder)


def test_a_reader_that_cannot_lead_waits_for_another_one(
    reader: Reader,
    containers: tuple[Container, Container],
    folder: str,
    origin: Origin,
) -> None:
    """It has a source, and no shared memory to lead with."""
    here, there = containers
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, stall_after=MIB)
    leader = reader(here, KEY, url)
    assert leader.hear()["role"] == "leads"
    wait_until(partial(has_come, folder, MIB))
    subprocess.run([*there.within, "mount", "-o", "remount,ro", "/dev/shm"], check=True)
    second = reader(here, KEY, url)
    unable = reader(there, KEY, url)
    assert second.hear()["role"] == unable.hear()["role"] == "follows"
    send(second, signal.SIGSTOP)
    send(leader, signal.SIGKILL)
    unable.say(-1)
    [journal] = Path(folder).rglob("*.shmstream-journal")
    wait_until(lambda: "seal" in journal.read_text())  # it has found the leader dead
    send(second, signal.SIGCONT)
    second.say(-1)
    for each in (second, unable):
        heard = each.hear()
        assert heard.get("sha256", heard) == sha256(DATA)
        each.finish()


def test_wrong_bytes_complete_no_reader(
    reader: Reader, containers: tuple[Container, Container], origin: Origin
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", first=0, count=1, wrong_at=1000, stall_after=2 * MIB)
    leader = reader(containers[0], KEY, url)
    assert leader.hear()["role"] == "leads"
    follower = reader(containers[1], KEY, url)
    assert follower.hear()["role"] == "follows"
    assert read(follower, MIB)["sha256"] != sha256(DATA[:MIB])
    origin.release()
    assert read(leader, -1)["error"] == "DigestMismatch"
    heard = read(follower, -1)
    assert (heard["error"], heard["at"]) == ("ContentChanged", MIB)
    assert len(origin.requests("/blob")) == 2, "it leads by now, and has read other bytes"
    fresh = reader(containers[0], KEY, url)
    fresh.hear()
    assert read(fresh, -1)["sha256"] == sha256(DATA)


def test_tasks_follow_the_file(
    start: Callable[..., Interpreter],
    reader: Reader,
    containers: tuple[Container, Container],
    origin: Origin,
    folder: str,
) -> None:
    url = origin.serve("/blob", seed=1, size=SIZE)
    origin.change("/blob", stall_after=MIB)
    leader = reader(containers[0], KEY, url)
    leader.hear()
    wait_until(partial(has_come, folder, MIB))
    tasks = start(flights.read_in_asyncio, folder, KEY, url, within=containers[1].within)
    for _ in range(3):
        assert tasks.hear() == {"first": sha256(DATA[:1000]), "role": "follows"}
    origin.release()
    assert tasks.hear() == [sha256(DATA)] * 3
    tasks.finish()
    assert read(leader, -1)["sha256"] == sha256(DATA)
    assert len(origin.requests("/blob")) == 1
