"""Code of users raises what is no `Exception`: `sys.exit()`, a cancelled task, Ctrl-C.

In the thread that leads, where no signal handler runs, that is a failure like any other: the next
source is asked, and a flight without one tells its readers why. A Ctrl-C, which comes to the main
thread alone, ends the process: then a process that follows takes over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from shmstream import Event, EventKind, Feed, Retries, SourceError, SourceFailed, Store
from shmstream.sources.base import Source, open_at
from tests.flight.test_last_moments import DATA, HALF, SIZE, Halting, open_store
from tests.support.interpreters import PATIENCE, Interpreter, Link, wait_until

ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
PLACES = ("open", "bytes", "end", "close")
every_end = pytest.mark.parametrize("end", ENDS, ids=lambda each: each.__name__)


class Ending:
    """A source whose code raises `end` at that place."""

    name = "a source that ends"

    def __init__(self, end: type[BaseException], place: str) -> None:
        self._end = end
        self._place = place

    def _at(self, place: str) -> None:
        if place == self._place:
            raise self._end("of its own")

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
        self._at("open")
        return Feed(self._pieces(offset), offset, SIZE, "v", close=lambda: self._at("close"))

    def _pieces(self, offset: int) -> Iterator[bytes]:
        if offset < HALF:
            yield DATA[offset:HALF]
        self._at("bytes")
        yield DATA[max(offset, HALF) :]
        self._at("end")


@every_end
@pytest.mark.parametrize("place", PLACES)
def test_the_next_source_is_asked(end: type[BaseException], place: str, folder: str) -> None:
    events: list[Event] = []
    store, other = Store(folder, durable=False, on_event=events.append), Halting()
    sources: list[Source] = [Ending(end, place), other]
    with store.open("name", sources) as blob:
        assert blob.read() == DATA
        blob.wait()
    assert other.asked == {"open": [0], "bytes": [HALF], "end": [], "close": []}[place]
    assert EventKind.ABORTED not in {each.kind for each in events}


@every_end
@pytest.mark.parametrize("place", ["open", "bytes"])
def test_the_only_source_has_failed(end: type[BaseException], place: str, store: Store) -> None:
    with pytest.raises(SourceFailed, match=end.__name__):
        store.fetch("name", Ending(end, place))


@every_end
def test_the_event_loop_goes_on(end: type[BaseException], store: Store) -> None:
    async def read() -> bytes:
        with pytest.raises(SourceFailed, match=end.__name__):
            async with store.aopen("name", Ending(end, "bytes")) as blob:
                await blob.read()
        async with store.aopen("name", Halting()) as blob:
            return await blob.read()

    assert asyncio.run(read()) == DATA


@every_end
def test_a_client_without_a_flight_is_told(end: type[BaseException], store: Store) -> None:
    async def read() -> None:
        because = SourceFailed("name", 0, "it broke")
        source = Ending(end, "bytes")
        async with store.pass_through("name", source, because, anyway=True) as passage:
            await passage.read(await passage.ask(), SIZE)

    with pytest.raises(SourceFailed, match=end.__name__):
        asyncio.run(read())


@pytest.mark.parametrize("number", range(len(ENDS)), ids=lambda each: ENDS[each].__name__)
def test_a_follower_with_another_source_takes_over(
    number: int, start: Callable[..., Interpreter], tmp_path: Path
) -> None:
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    leader = start(leads_later, str(tmp_path / "store"), number, str(go_on))
    store, source = open_store(str(tmp_path / "store")), Halting()
    assert leader.hear() == HALF
    with store.open("name", source) as blob:
        blob.wait_past(0)
        go_on.write_bytes(b"!")
        assert blob.read() == DATA
        blob.wait()
    assert source.asked == [HALF]
    assert leader.hear() == SIZE - HALF
    leader.finish()


def leads_later(link: Link, folder: str, number: int, go_on: str) -> None:
    """A leader whose source ends after half of the blob, when it is told to."""

    class Later(Ending):
        def _at(self, place: str) -> None:
            if place == "bytes":
                Path(go_on).read_bytes()
            super()._at(place)

    with open_store(folder).open("name", Later(ENDS[number], "bytes")) as blob:
        link.say(len(blob.read(HALF)))
        link.say(len(blob.read()))


@every_end
def test_a_listener_ends_nothing(end: type[BaseException], folder: str) -> None:
    def listen(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise end("of its own")

    class Breaking(Halting):
        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            if not self.asked:
                self.asked.append(-1)
                raise SourceError(self.name, 0, "it is away")
            return super().open(offset, validator)

    source = Breaking()
    retries = Retries(first_pause=0.0, on_retry=listen)
    store = Store(folder, durable=False, retries=retries, on_event=listen)
    assert Path(store.fetch("name", source)).read_bytes() == DATA
    assert source.asked == [-1, 0]


def test_a_feed_that_cannot_be_closed() -> None:
    class NoFeed:
        name = "no feed"

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:  # noqa: ARG002
            return None  # type: ignore[return-value]

    with pytest.raises(SourceError, match="NoneType"):
        open_at(NoFeed(), 0, None)


IN_A_GREENLET = """
import gevent.monkey
gevent.monkey.patch_all()
import os, signal, sys
from shmstream import Feed, Store
from tests.flight.test_last_moments import DATA, HALF, SIZE

class Interrupted:
    name = "a source"
    def open(self, offset=0, validator=None):
        return Feed(self.pieces(offset), offset, SIZE, "v")
    def pieces(self, offset):
        yield DATA[offset:HALF]
        print("half", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        yield DATA[HALF:]

Store(sys.argv[1], durable=False).fetch("name", Interrupted())
"""


@pytest.mark.skipif(not find_spec("gevent"), reason="gevent is not installed")
def test_a_ctrl_c_hits_the_greenlet_that_leads(tmp_path: Path) -> None:
    """All greenlets are in the main thread. The process ends, and a follower goes on."""
    folder = str(tmp_path / "store")
    command = [sys.executable, "-W", "ignore", "-c", IN_A_GREENLET, folder]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as leader:
        assert leader.stdin is not None
        assert leader.stdout is not None
        assert leader.stdout.readline() == "half\n"
        store, source = open_store(folder), Halting()
        wait_until(lambda: any(each.published for each in store.flights()))
        with store.open("name", source) as blob:
            blob.wait_past(0)
            leader.stdin.write("\n")
            leader.stdin.flush()
            assert blob.read() == DATA
            blob.wait()
        assert source.asked == [HALF]
        _, told = leader.communicate(timeout=PATIENCE)
    assert leader.returncode in (1, -signal.SIGINT, 130), told
    assert "KeyboardInterrupt" in told


IN_TIME = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, gevent
from shmstream import Feed, Store
from shmstream.sources.base import open_at

class Slow:
    name = "a slow source"
    def open(self, offset=0, validator=None):
        gevent.sleep(60)

def outside(limit):
    try:
        with limit:
            open_at(Slow(), 0, None)
    except BaseException as error:
        return error

limit = gevent.Timeout(0.05)
assert outside(limit) is limit
killed = gevent.spawn(open_at, Slow(), 0, None)
gevent.sleep(0)
killed.kill()
assert isinstance(killed.get(), gevent.GreenletExit)
"""


@pytest.mark.skipif(not find_spec("gevent"), reason="gevent is not installed")
def test_what_ends_a_greenlet_from_outside_is_no_failure_of_its_source() -> None:
    command = [sys.executable, "-W", "ignore", "-c", IN_TIME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
