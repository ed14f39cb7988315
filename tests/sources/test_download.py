"""One blob from several sources: asked in turn, with retries, and never two contents mixed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from shmstream import (
    ContentChanged,
    Event,
    EventKind,
    FailureKind,
    Feed,
    OutOfResources,
    ShmstreamError,
    SourceError,
    SourceFailed,
    StreamClosed,
)
from shmstream.sources.base import Description
from shmstream.sources.download import Download
from shmstream.sources.retries import Retries

BLOB = bytes(range(256)) * 40
HASTE = Retries(attempts=3, with_others=2, first_pause=0.0, longest_pause=0.0)


class Scripted:
    """A source that answers each `open` with the next of its answers; the last one for ever."""

    def __init__(self, name: str, *answers: Callable[[int], Feed] | SourceError) -> None:
        self.name = name
        self._answers = list(answers)
        self.asked: list[tuple[int, str | None]] = []

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        self.asked.append((offset, validator))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, SourceError):
            raise answer
        return answer(offset)


def gives(
    data: bytes = BLOB,
    *,
    breaks_at: int | None = None,
    begins: int | None = None,
    validator: str | None = None,
    size: int | None = len(BLOB),
) -> Callable[[int], Feed]:
    """An answer that gives `data` from the offset, or from `begins`, in buffers of 1,000 bytes."""

    def answer(offset: int) -> Feed:
        start = offset if begins is None else begins

        def buffers() -> Iterator[bytes]:
            for at in range(start, len(data) if breaks_at is None else breaks_at, 1000):
                yield data[at : min(at + 1000, len(data))]
            if breaks_at is not None:
                raise SourceError("it", breaks_at, "it broke")

        return Feed(buffers(), start, size, validator)

    return answer


def refuses(reason: str = "no", **facts: float | bool) -> SourceError:
    return SourceError("it", 0, reason, **facts)  # type: ignore[arg-type]


class Client:
    """Downloads as a leader does: compares what comes again with what it has."""

    def __init__(
        self,
        *sources: Scripted,
        is_given: bool = True,
        known: Description | None = None,
        retries: Retries = HASTE,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.events: list[Event] = []
        self.data = b""
        self.download = Download(
            "key", "name", sources, retries,
            is_given=is_given, compares=True, tell=self.events.append, end="it was stopped",
            is_wanted=is_wanted,
        )  # fmt: skip
        self.download.known, self.download.binds = known or Description(), known is not None

    def is_same(self, data: memoryview, offset: int) -> bool:
        return self.data[offset : offset + len(data)] == data

    def run(self) -> bytes:
        while True:
            feed = self.download.open(len(self.data))
            if not self.download.binds:
                self.download.known = Description(feed.size, feed.validator, feed.media_type)
                self.download.binds = True
            try:
                for new in self.download.new(feed, len(self.data), self):
                    self.data += new
            except SourceError as error:
                self.download.fail(error, len(self.data))
            else:
                self.download.close()
                return self.data

    def kinds(self) -> list[EventKind]:
        return [each.kind for each in self.events]


def test_one_source_in_one_go() -> None:
    client = Client(Scripted("it", gives()))
    assert client.run() == BLOB
    assert client.events == [Event(EventKind.RECEIVED, "key", len(BLOB))]


def test_a_source_that_breaks_is_asked_again_where_it_broke() -> None:
    source = Scripted("it", gives(breaks_at=5000), gives())
    assert Client(source).run() == BLOB
    assert source.asked == [(0, None), (5000, None)]


def test_the_next_source_goes_on_at_the_same_offset() -> None:
    first, second = Scripted("it", gives(breaks_at=5000), refuses()), Scripted("other", gives())
    client = Client(first, second)
    assert client.run() == BLOB
    assert second.asked == [(5000, None)]
    assert client.kinds() == [EventKind.RECEIVED, EventKind.FAILED_OVER, EventKind.RECEIVED]


def test_the_last_word_of_each_source() -> None:
    client = Client(Scripted("it", refuses("gone")), Scripted("it", refuses("away")))
    with pytest.raises(SourceFailed, match="away"):
        client.run()


def test_retries_are_told_after_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Each with its reason, how many tries there were and will be, and the pause."""
    source = Scripted("it", refuses("busy", retry_after=0.6), refuses("busy", retry_after=0.6))
    with pytest.raises(SourceFailed, match=r"^'name' was aborted after 0 bytes: ") as caught:
        Client(source).run()
    assert caught.value.reason == "it at offset 0: busy (it failed 3 times)"
    caught.value.name = "it"
    assert str(caught.value).count("it at offset 0") == 1, "a key that is the URL is not repeated"
    [told] = caplog.messages
    assert told == "key: it at offset 0: busy; that was try 2 of 3, the next is in 0.6 s"


def test_a_source_that_breaks_off_after_a_few_bytes_each_time_crawls() -> None:
    def gives_ten(offset: int) -> Feed:
        return gives(BLOB[: offset + 10], breaks_at=offset + 10)(offset)

    floor = Retries(first_pause=0.001, longest_pause=0.001, least_rate=1e6, slow_for=0.05)
    crawling, other = Scripted("it", gives_ten), Scripted("other", gives())
    client = Client(crawling, other, retries=floor)
    assert client.run() == BLOB
    assert other.asked[0][0] < len(BLOB), "it was left on the way"


def test_a_hopeless_source_is_asked_once() -> None:
    source = Scripted("it", refuses(retryable=False))
    with pytest.raises(SourceFailed):
        Client(source).run()
    assert len(source.asked) == 1


def test_a_pause_that_is_too_long_is_none() -> None:
    source = Scripted("it", refuses(retry_after=3600.0))
    with pytest.raises(SourceFailed):
        Client(source).run()
    assert len(source.asked) == 1


def test_a_source_that_begins_at_0_again_is_compared() -> None:
    source = Scripted("it", gives(breaks_at=5000), gives(begins=0))
    assert Client(source).run() == BLOB


def test_other_bytes_before_the_position() -> None:
    other = b"x" + BLOB[1:]
    source = Scripted("it", gives(breaks_at=5000), gives(other, begins=0))
    with pytest.raises(SourceFailed, match="other bytes than before are at 0"):
        Client(source).run()
    named = Scripted("it", gives(breaks_at=5000), gives(other))
    with pytest.raises(ContentChanged, match="other bytes than before are at 0"):
        Client(named, is_given=False).run()


def test_a_name_without_a_validator_is_asked_from_0() -> None:
    source = Scripted("it", gives(breaks_at=5000), gives())
    assert Client(source, is_given=False).run() == BLOB
    assert source.asked == [(0, None), (0, None)]


def test_a_name_with_another_validator_has_changed() -> None:
    source = Scripted("it", gives(breaks_at=5000, validator="a"), gives(validator="b"))
    with pytest.raises(ContentChanged, match="its validator is 'b' by now, not 'a'"):
        Client(source, is_given=False).run()
    assert source.asked == [(0, None), (5000, "a")]


def test_another_size_is_another_blob() -> None:
    first = Scripted("it", gives(breaks_at=5000), gives(size=17))
    assert Client(first, Scripted("other", gives())).run() == BLOB
    with pytest.raises(ContentChanged, match="it has 17 bytes by now"):
        Client(Scripted("it", gives(size=17)), is_given=False, known=Description(5)).run()


def test_a_validator_is_asked_of_the_source_that_gave_it_only() -> None:
    first = Scripted("it", gives(breaks_at=5000, validator="a"), refuses(retryable=False))
    second = Scripted("other", gives(validator="b"))
    assert Client(first, second).run() == BLOB
    assert (first.asked[1], second.asked) == ((5000, "a"), [(5000, None)])


def test_a_source_that_begins_behind_the_position() -> None:
    source = Scripted("it", gives(begins=5))
    with pytest.raises(SourceFailed, match="it begins at 5, not 0"):
        Client(source).run()


def test_an_end_before_the_position() -> None:
    source = Scripted("it", gives(breaks_at=5000), gives(BLOB[:3000], begins=0))
    with pytest.raises(SourceFailed, match="it ended after 3000 bytes"):
        Client(source).run()


def test_whatever_a_source_raises_is_its_error() -> None:
    def raises(_offset: int) -> Feed:
        raise ZeroDivisionError("a bug")

    with pytest.raises(SourceFailed, match="ZeroDivisionError: a bug"):
        Client(Scripted("it", raises)).run()


def test_without_a_prefix_a_name_needs_its_validator_from_0_on_too() -> None:
    client = Client(Scripted("it", gives()), is_given=False, known=Description(validator="a"))
    client.download.compares = False
    with pytest.raises(ContentChanged):
        client.run()


def test_a_stop_is_no_end() -> None:
    """A feed that ends because it was closed by a stop has not given the blob."""
    client = Client(Scripted("it", gives(size=None)))
    feed = client.download.open(0)
    arriving = client.download.new(feed, 0, None)
    next(arriving)
    client.download.stop()
    with pytest.raises(StreamClosed, match="it was stopped"):
        list(arriving)
    with pytest.raises(StreamClosed):
        client.download.open(0)
    with pytest.raises(StreamClosed):
        client.download.fail(refuses(), 0)


@pytest.mark.parametrize(
    ("lack", "expected"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OutOfResources),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), OutOfResources),
        (MemoryError(), OutOfResources),
        (OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), SourceFailed),
    ],
)
def test_what_this_machine_lacks_is_no_failure_of_the_source(
    lack: Exception, expected: type[ShmstreamError]
) -> None:
    """The error that a source raises has it among its causes, which may even be a circle."""
    error = refuses("it cannot be reached", retryable=False)
    between = ValueError("no connection")
    error.__cause__, between.__cause__, lack.__context__ = between, lack, between
    with pytest.raises(expected, match=r"cannot be reached|out of"):
        Client(Scripted("it", error)).download.open(0)


# A source that is away, or silent, for a while.


def away(tries: int) -> list[SourceError]:
    kind = FailureKind.UNREACHABLE
    return [SourceError("it", 0, "away", kind=kind) for _ in range(tries)]


PATIENT = Retries(attempts=3, first_pause=0.0, longest_pause=0.0, outage=3600.0)


def test_a_source_that_is_away_in_the_middle_is_waited_for() -> None:
    source = Scripted("it", gives(breaks_at=5000), *away(50), gives())
    assert Client(source, retries=PATIENT).run() == BLOB
    assert source.asked[-1] == (5000, None), "it is asked for the rest, not for the whole"


def test_a_server_in_between_that_is_up_while_its_source_is_away() -> None:
    """It says 503. Perhaps its ranges do not work: then it is asked for the whole blob, too."""
    busy = [SourceError("it", 5000, "503", status=503) for _ in range(50)]
    source = Scripted("it", gives(breaks_at=5000), *busy, gives())
    assert Client(source, retries=PATIENT).run() == BLOB
    assert source.asked[-1] == (5000, None)
    assert sum(offset == 0 for offset, _ in source.asked) == 1 + PATIENT.with_others


def test_other_sources_are_asked_before_one_is_waited_for() -> None:
    first = Scripted("it", gives(breaks_at=5000), *away(50))
    second = Scripted("other", gives(breaks_at=7000), *away(50), gives())
    assert Client(first, second, retries=PATIENT).run() == BLOB
    assert len(first.asked) == 1 + 1


def test_each_byte_gives_it_the_whole_time_again() -> None:
    answers: list[Callable[[int], Feed] | SourceError] = []
    for at in range(1, 9):
        answers += [gives(breaks_at=at * 1000), *away(20)]
    assert Client(Scripted("it", *answers, gives()), retries=PATIENT).run() == BLOB


@pytest.mark.parametrize(
    ("answers", "is_wanted", "outage"),
    [
        (away(50), True, 3600.0),  # before the first byte: the client is told, and may ask again
        ([gives(breaks_at=5000), *away(50)], False, 3600.0),
        ([gives(breaks_at=5000), *away(50)], True, 0.0),
        ([gives(breaks_at=5000), *away(10), refuses("404", status=404, retryable=False)],
         True, 3600.0),
    ],
)  # fmt: skip
def test_what_is_not_waited_for(answers: list[Any], is_wanted: bool, outage: float) -> None:
    retries = replace(PATIENT, outage=outage)
    source = Scripted("it", *answers)
    with pytest.raises(SourceFailed):
        Client(source, retries=retries, is_wanted=lambda: is_wanted).run()
    assert len(source.asked) <= 13


class Clock:
    """The clock of a download; a source moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in ("download", "retries"):
        monkeypatch.setattr(f"shmstream.sources.{module}.time", found)
    return found


def test_the_time_of_an_outage(clock: Clock) -> None:
    """It is over when no byte came for so long."""

    def later(_: int) -> Feed:
        clock.now += 10.0
        raise SourceError("it", 0, "away")

    source = Scripted("it", gives(breaks_at=5000), later)
    with pytest.raises(SourceFailed, match="away"):
        Client(source, retries=replace(PATIENT, outage=100.0)).run()
    assert 100.0 <= clock.now - 1000.0 <= 120.0


def in_bursts(clock: Clock, silence: float, burst: int, rate: float) -> Callable[[int], Feed]:
    """An answer that is silent for so long before each burst of so many bytes."""

    def answer(offset: int) -> Feed:
        def buffers() -> Iterator[bytes]:
            for at in range(offset, len(BLOB), 1000):
                if (at - offset) % burst == 0:
                    clock.now += silence
                clock.now += 1000 / rate
                yield BLOB[at : at + 1000]

        return Feed(buffers(), offset, len(BLOB))

    return answer


@pytest.mark.parametrize("burst", [1000, 2000, 5000])
def test_a_server_that_gathers_does_not_crawl(clock: Clock, burst: int) -> None:
    """It is silent for longer than the time that a rate is measured over."""
    retries = replace(PATIENT, least_rate=20.0, slow_for=15.0)
    source = Scripted("it", in_bursts(clock, 40.0, burst, 1e6))
    assert Client(source, retries=retries).run() == BLOB
    assert len(source.asked) == 1


def test_a_server_that_drips_crawls(clock: Clock) -> None:
    """A few bytes now and then do not make it a server that gathers."""
    retries = replace(PATIENT, least_rate=1024.0, slow_for=15.0, outage=1e9)
    source = Scripted("it", in_bursts(clock, 20.0, 1000, 1e6))
    with pytest.raises(SourceFailed, match="gave only"):
        Client(source, retries=retries).run()
    assert clock.now - 1000.0 <= 120.0


def test_a_server_whose_parts_crawl_is_asked_for_the_whole(clock: Clock) -> None:
    """The whole blob came fast, until that broke off."""
    crawls = in_bursts(clock, 20.0, 1000, 1e6)
    source = Scripted(
        "it", gives(breaks_at=5000), lambda offset: crawls(offset) if offset else gives()(0)
    )
    retries = replace(PATIENT, least_rate=1024.0, slow_for=15.0)
    assert Client(source, retries=retries).run() == BLOB
    assert source.asked[-1] == (0, None)
    assert all(offset for offset, _ in source.asked[1:-1])


def held_back(clock: Clock, offset: int) -> Feed:
    """1,000 bytes each 100 s, which this side has held back for all of that time."""
    held = [0.0]

    def buffers() -> Iterator[bytes]:
        for at in range(offset, len(BLOB), 1000):
            clock.now += 100.0
            held[0] += 100.0
            yield BLOB[at : at + 1000]

    def tell() -> float:
        found, held[0] = held[0], 0.0
        return found

    return Feed(buffers(), offset, len(BLOB), held=tell)


def test_what_this_side_holds_back_is_no_crawl(clock: Clock) -> None:
    """A limit that an operator has set is not the slowness of the server."""
    source = Scripted("it", partial(held_back, clock))
    retries = replace(PATIENT, least_rate=1024.0, slow_for=15.0)
    assert Client(source, retries=retries).run() == BLOB
    assert len(source.asked) == 1


def test_what_is_looked_at_first_was_held_back(clock: Clock) -> None:
    """The same for bytes that a caller looks at before they are counted."""
    source = Scripted("it", partial(held_back, clock))
    retries = replace(PATIENT, least_rate=1024.0, slow_for=15.0)
    download, data = Client(source, retries=retries).download, b""
    feed = download.open(0)
    while (piece := download.take(feed, len(data))) is not None:
        data += piece
        download.gauge(len(bytes(piece)), len(data))
    assert data == BLOB
    download.close()
