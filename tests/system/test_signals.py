"""What Ctrl-C, SIGTERM and SIGHUP do to the block that they interrupt."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shmstream.system.signals import Stopped, stoppable, undisturbed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of the test process, which a block that was stopped does not bring back."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_unwinds_and_the_second_does_nothing(number: signal.Signals) -> None:
    cleared_up = False
    with pytest.raises(Stopped) as stop, stoppable():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleared_up = True
    assert stop.value.number == number
    assert cleared_up
    assert all(signal.getsignal(each) == signal.SIG_IGN for each in SIGNALS)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable():
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_handlers_come_back() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stoppable():
        assert before != [signal.getsignal(each) for each in SIGNALS]
    assert before == [signal.getsignal(each) for each in SIGNALS]


def test_a_signal_waits_for_the_end_of_an_undisturbed_block() -> None:
    finished = False
    with pytest.raises(Stopped) as stop, stoppable(), undisturbed():
        signal.raise_signal(signal.SIGTERM)
        finished = True
    assert finished
    assert stop.value.number == signal.SIGTERM
