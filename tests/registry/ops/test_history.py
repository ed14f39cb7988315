"""The chart's history: of all workers together, and no worker takes it away with its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

from shmstream.registry.ops.admin import Operations
from shmstream.registry.ops.history import FILE, History, Sample
from shmstream.registry.ops.metrics import Metrics
from shmstream.registry.ops.status import Status
from tests.registry.ops.test_admin import Events
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until
from tests.support.serving import Serve

PERIOD = 0.01  # s


def note_for_ever(link: Link, folder: str, period: float) -> None:
    """As a worker does, but without a pause."""
    history = History(folder, period)
    link.say("begins")
    while True:
        history.note(lambda: (1, 2))


def goes_on(history: History, moment: float) -> bool:
    """Whether samples have come after that moment."""
    return sum(each.time > moment for each in history.samples()) > 3


def periods(samples: list[Sample]) -> list[int]:
    return [int(each.time // PERIOD) for each in samples]


def test_workers_note_together_and_are_killed(
    start: Callable[..., Interpreter], tmp_path: Path
) -> None:
    """Whenever it is read, each record is whole, and no period is there twice.

    After a kill the other worker goes on. It may replace a record by its own of the same period.
    """
    history = History(str(tmp_path), PERIOD)
    workers = [start(note_for_ever, str(tmp_path), PERIOD) for _ in range(2)]
    for worker in workers:
        assert worker.hear() == "begins"
    begin = time.monotonic()
    for number in range(3):
        wait_until(partial(goes_on, history, begin))
        known = history.samples()
        assert all(one < two for one, two in pairwise(periods(known)))
        assert all((each.served, each.upstream) == (1, 2) for each in known)
        if number < 2:
            workers[number].kill()
            still = {
                *periods(history.samples()),
                *periods(history.samples()),
            }  # none is half written
            oldest = time.monotonic() // PERIOD - 119
            assert not [each for each in periods(known) if each > oldest and each not in still]
            workers.append(start(note_for_ever, str(tmp_path), PERIOD))
            assert workers[-1].hear() == "begins"
            begin = time.monotonic()
    assert os.path.getsize(tmp_path / FILE) <= 120 * 28, "bounded"


def never() -> tuple[float, float]:
    raise AssertionError("the sums are read again in the same period")


def test_one_worker_notes_for_all(tmp_path: Path) -> None:
    one, two = History(str(tmp_path), 1e9), History(str(tmp_path), 1e9)
    one.note(lambda: (1, 1))
    two.note(never)
    assert two.samples() == one.samples() != []
    assert 0 < one.pause() <= 1e9


def test_half_a_record_and_records_of_other_times_are_left_out(tmp_path: Path) -> None:
    history, now = History(str(tmp_path)), time.monotonic()
    told = [Sample(now - 700, 1, 1), Sample(now - 300, 2, 2), Sample(now - 200, 3, 3),
            Sample(now + 100, 9, 9)]  # fmt: skip
    records = [each.to_bytes() for each in told]
    torn = Sample(now - 100, 4, 4).to_bytes()[:14] + Sample(now - 99, 5, 5).to_bytes()[14:]
    (tmp_path / FILE).write_bytes(b"".join([*records, bytes(28), torn, records[0][:9]]))
    assert history.samples() == told[1:3]
    again = [Sample(now - 50, 0, 0), Sample(now - 40, 2, 1)]
    (tmp_path / FILE).write_bytes(b"".join([*records, *(each.to_bytes() for each in again)]))
    assert history.samples() == again, "the counts began again"
    late = Sample(now - 250, 50, 50)  # its worker was stopped before it read the sums
    (tmp_path / FILE).write_bytes(b"".join([*records, late.to_bytes()]))
    assert history.samples() == told[1:3]


def test_without_a_folder(tmp_path: Path) -> None:
    """It is not there any more; or the process counts for itself alone, and remembers likewise."""
    gone = History(str(tmp_path / "gone"))
    gone.note(lambda: (1, 1))
    assert gone.samples() == []
    alone = History(None, 1e9)
    alone.note(lambda: (1, 2))
    alone.note(never)
    assert [(each.served, each.upstream) for each in alone.samples()] == [(1, 2)]
    assert History(None).samples() == []


class Failing:
    """A `Status` whose sums cannot be read at first, each time for another reason."""

    folder = "nowhere"

    def __init__(self) -> None:
        self.history = History(None, PERIOD)
        self.reasons: list[Exception] = [
            OSError("gone"), RuntimeError("Read beyond file size detected"), MemoryError(),
        ]  # fmt: skip

    def note(self) -> None:
        if self.reasons:
            raise self.reasons.pop(0)
        self.history.note(lambda: (1, 1))


def test_a_period_in_which_nothing_can_be_read_is_no_end() -> None:
    async def check() -> None:
        failing = Failing()
        operations = Operations(cast("Status", failing), Metrics(), list)
        operations.start()
        async with asyncio.timeout(PATIENCE):
            while not failing.history.samples():
                await asyncio.sleep(PERIOD)
        operations.close()

    asyncio.run(check())


def test_a_server_remembers_when_all_workers_are_replaced(serve: Serve) -> None:
    serving = serve("--no-access-log")
    [folder] = serving.temporary.iterdir()
    history = History(str(folder))
    wait_until(lambda: history.samples() != [])
    first, *_ = history.samples()
    for worker in serving.workers():
        os.kill(worker, signal.SIGKILL)
    events = Events(serving)
    snapshot = events.next()
    assert [first.served, first.upstream] == snapshot["history"][0][1:]
    moments = [each[0] for each in snapshot["history"]]
    assert moments == sorted(moments)
    assert abs(time.time() - (time.monotonic() - first.time) - moments[0]) < 60
    assert "history" not in events.next(), "only the first snapshot has it"
    events.close()
    assert serving.ask("/metrics").status == 200, "the file is none of the metrics"
