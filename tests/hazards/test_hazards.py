"""Rare events: forks and signals at a bad moment, inode numbers used again, warnings."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import posix_ipc
import pytest

from shmstream import (
    BlobStreamer,
    DamagedPartial,
    InFlightCopier,
    StreamClosed,
    WriterDied,
    WriterStalled,
    sweep,
)
from shmstream.stream import claims, doorbell, partial, segment
from shmstream.stream.listing import listing
from shmstream.stream.segment import Segment
from shmstream.stream.stream import Stream
from shmstream.stream.waiter import Tail
from shmstream.system.locks import WHOLE_FILE, KernelLock
from tests.support import roles
from tests.support.interpreters import PATIENCE, Interpreter, wait_until

Start = Callable[..., Interpreter]


def run(
    program: str, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_an_inode_number_that_is_used_again(start: Start, blob: str) -> None:
    """The blob of a dead writer is removed; another file gets its name and inode number."""
    writer = start(roles.write, blob, {"name": "old"})
    assert writer.hear() == "old"
    for order in (["append", 1, 13], ["commit"]):
        writer.say(order)
        writer.hear()
    writer.kill()
    number = os.stat(blob).st_ino
    os.unlink(blob)
    for _ in range(200):
        Path(blob).write_bytes(b"another blob!")
        if os.stat(blob).st_ino == number:
            break
        os.unlink(blob)
    with pytest.raises(DamagedPartial):
        InFlightCopier.attach("old")
    assert sweep() == ["old"]


CLOSING = """
import signal, sys, threading, time
from shmstream import BlobStreamer, InFlightCopier, StreamClosed
streamer = BlobStreamer.create(sys.argv[1])
copier = InFlightCopier.attach(streamer.name)
waiting = threading.Event()
wait = copier._tail._subscription.doorbell.wait
def announce(pause):
    waiting.set()
    return wait(pause)
copier._tail._subscription.doorbell.wait = announce
def close(*_):
    copier.close()
if sys.argv[2] == "thread":
    threading.Thread(target=lambda: (waiting.wait(), time.sleep(0.05), close())).start()
else:
    signal.signal(signal.SIGALRM, close)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    copier.read1()
except StreamClosed:
    print("closed")
streamer.close()
"""


@pytest.mark.parametrize("how", [InFlightCopier.read1, InFlightCopier.wait])
def test_closing_while_a_reader_looks_whether_its_writer_lives(
    how: Callable[[InFlightCopier], object], blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes the reader, so that its descriptor is gone when it looks."""
    with BlobStreamer.create(blob) as streamer:
        reader = InFlightCopier.attach(streamer.name)

        def look_too_late(_: Stream) -> bool:
            reader.close()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

        monkeypatch.setattr(Stream, "is_orphaned", look_too_late)
        with pytest.raises(StreamClosed):
            how(reader)
        monkeypatch.undo()
        streamer.abort("over")


@pytest.mark.parametrize("by", ["thread", "signal handler"])
def test_closing_under_a_waiter(by: str, blob: str) -> None:
    """The semaphore stays mapped until the wait has ended."""
    done = run(CLOSING, blob, by)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_a_fork_while_a_thread_appends(blob: str) -> None:
    """The child has a lock that no thread will ever release; it must not wait for that lock."""
    with BlobStreamer.create(blob) as streamer:
        stop = threading.Event()

        def pump() -> None:
            while not stop.is_set():
                streamer.append(bytes(1 << 16))

        thread = threading.Thread(target=pump)
        thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    streamer.append(b"x")
                except StreamClosed:
                    streamer.close()
                    code = 0
                finally:
                    os._exit(code)
            deadline = time.monotonic() + PATIENCE
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
                assert time.monotonic() < deadline, "the child hangs"
                time.sleep(0.001)
            assert ended[1] == 0
        stop.set()
        thread.join()
        streamer.commit()


FORKS = """
import os, sys, threading, warnings
from shmstream import BlobStreamer
warnings.simplefilter("ignore")
stop = threading.Event()
def churn(number):
    while not stop.is_set():
        BlobStreamer.create(f"{sys.argv[1]}{number}", max_subscribers=1).close()
threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
[thread.start() for thread in threads]
holding = 0
for _ in range(150):
    child = os.fork()
    if child == 0:
        locks = 0
        for number in os.listdir("/proc/self/fd"):
            try:
                with open(f"/proc/self/fdinfo/{number}") as facts:
                    locks += "OFDLCK" in facts.read()
            except FileNotFoundError:
                pass
        os._exit(locks > 0)
    holding += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
stop.set()
[thread.join() for thread in threads]
print(holding)
"""


def test_forked_children_hold_no_locks(blob: str) -> None:
    """Not even a descriptor that a thread is about to open or to close."""
    done = run(FORKS, blob)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


FORGOTTEN = """
import gc, sys
from shmstream import BlobStreamer, InFlightCopier
streamer = BlobStreamer.create(sys.argv[1], name="forgotten")
copier = InFlightCopier.attach("forgotten")
del copier, streamer
gc.collect()
BlobStreamer.create(sys.argv[1], name="forgotten").close()
print("free again")
"""


def test_forgetting_with_warnings_as_errors(blob: str) -> None:
    done = run(FORGOTTEN, blob, options=("-W", "error"))
    assert (done.returncode, done.stdout) == (0, "free again\n"), done.stderr
    assert segment.names() == []


KILLED_IN_THE_MIDDLE = """
import os, sys, threading
from multiprocessing import util
from shmstream import BlobStreamer, InFlightCopier
from shmstream.system import locks, process

def hold(forking, ending, held):
    ending.wait()
    with forking:
        held.set()
        ending.clear()
        ending.wait()  # as a thread that closes a descriptor while it is ended

ending, held = threading.Event(), threading.Event()
elsewhere = type(hold)(hold.__code__, {})  # a function keeps its module alive
threading.Thread(target=elsewhere, args=(process.fork_lock, ending, held), daemon=True).start()
streamer = BlobStreamer.create(sys.argv[1])
copier = InFlightCopier.attach(streamer.name)
lock = locks.KernelLock(sys.argv[1] + ".lock", os.O_CREAT)
util.Finalize(None, lambda: (ending.set(), held.wait()), exitpriority=50)  # after ours
"""


def test_an_interpreter_ends_whatever_its_threads_were_at(blob: str) -> None:
    done = run(KILLED_IN_THE_MIDDLE, blob)
    assert (done.returncode, done.stderr) == (0, "")
    os.unlink(blob + ".lock")


def test_looking_at_the_dead_does_not_revive_them(start: Start, blob: str) -> None:
    """While a reaper holds the lock, readers notice the death, and a new writer may come."""
    writer = start(roles.write, blob, {"name": "dead"}, "after write")
    assert writer.hear() == "dead"
    with InFlightCopier.attach("dead") as reader:
        writer.say(["append", 1, 10])
        writer.wait_killed()
        reaper = KernelLock(segment.path_of("dead"))
        assert reaper.try_acquire(partial.REAPER)
        assert claims.is_abandoned("dead")
        assert reader._stream.is_orphaned()
        reaper.close()
        heir = BlobStreamer.create(blob, name="dead")
        assert not claims.is_abandoned("dead")
        assert not claims.reap("dead")
        heir.close()


SPARSE = """
import os, sys
from shmstream import InFlightCopier, StreamNotFound
try:
    InFlightCopier.attach("sparse", timeout=0.1)
except StreamNotFound:
    print("not yet")
"""


def test_a_segment_that_is_not_reserved_yet_is_not_touched() -> None:
    """It may have more pages than /dev/shm: a touch of one would raise SIGBUS."""
    path = Path(segment.path_of("sparse"))
    path.touch(0o600)
    lock = KernelLock(str(path))
    assert lock.try_acquire(claims._HEADER)
    os.truncate(path, 100_000)
    done = run(SPARSE)
    assert (done.returncode, done.stdout) == (0, "not yet\n"), done.stderr
    lock.close()
    path.unlink()


def test_a_fifo_in_the_way_blocks_nobody(blob: str) -> None:
    fifo = Path(segment.path_of("fifo"))
    os.mkfifo(fifo, 0o600)
    assert sweep() == []
    BlobStreamer.create(blob).close()
    fifo.unlink()


def test_numbers_that_are_out_of_bounds(blob: str) -> None:
    for interval in (float("inf"), float("nan"), 1e300):
        with pytest.raises(ValueError, match="finite"):
            BlobStreamer.create(blob, publish_interval=interval)
    for name in ("", "a/b", "x" * 300):
        with pytest.raises(ValueError, match="a stream's name has"):
            InFlightCopier.attach(name)
    with BlobStreamer.create(blob) as streamer, InFlightCopier.attach(streamer.name) as reader:
        with pytest.raises(TypeError):
            reader.seek(1.5)  # type: ignore[arg-type]
        assert reader.read(0) == b""
        reader.seek(1000)
        assert reader.read(0) == b"", "nothing is there at once"
        streamer.commit()


# The narrow places, forced.


def test_a_reaper_between_making_and_locking(monkeypatch: pytest.MonkeyPatch, blob: str) -> None:
    """The creator finds that its segment and its file have lost their names, and starts over."""
    made: list[str] = []
    create = Segment.create

    def create_and_be_reaped(name: str, size: int) -> Segment:
        mapped = create(name, size)
        if not made:
            assert claims.reap(name)
        made.append(name)
        return mapped

    monkeypatch.setattr(Segment, "create", create_and_be_reaped)
    try_acquire = KernelLock.try_acquire
    removed: list[str] = []

    def lose_the_file_and_lock(self: KernelLock, span: tuple[int, int]) -> bool:
        if span == WHOLE_FILE and not removed:
            removed.append(blob)
            os.unlink(partial.partial_path(blob))
        return try_acquire(self, span)

    monkeypatch.setattr(KernelLock, "try_acquire", lose_the_file_and_lock)
    with BlobStreamer.create(blob, name="again") as streamer:
        with InFlightCopier.attach("again") as reader:
            streamer.transfer([b"data"])
            assert reader.read() == b"data"
    assert (made, removed) == (["again", "again"], [blob])
    assert Path(blob).read_bytes() == b"data"


def test_a_stream_that_begins_while_the_dead_are_swept(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """The listing has passed the place of its name before it began, and finds its doorbell."""
    orphan = doorbell.name_of(12345, 1, 1)
    posix_ipc.Semaphore(orphan, posix_ipc.O_CREX).close()
    with (
        BlobStreamer.create(blob, name="newcomer", publish_interval=0) as streamer,
        InFlightCopier.attach("newcomer"),
    ):

        def list_without_the_newcomer() -> list[str]:
            monkeypatch.setattr(claims, "listing", listing)
            return [each for each in listing() if "newcomer" not in each]

        monkeypatch.setattr(claims, "listing", list_without_the_newcomer)
        assert sweep() == [orphan]
        assert len(list(doorbell.names(streamer._block.token))) == 1


def test_the_last_two_readers_of_a_dead_stream_leave_together(
    start: Start, monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """One sees that the other still reads; the other sees that a reaper is at work."""
    writer = start(roles.write, blob, {"name": "dead"})
    assert writer.hear() == "dead"
    one, other = InFlightCopier.attach("dead"), InFlightCopier.attach("dead")
    writer.kill()
    is_held = KernelLock.is_held_elsewhere
    answers: list[bool] = []

    def leave_after_the_look(lock: KernelLock, span: tuple[int, int]) -> bool:
        held = is_held(lock, span)
        if not answers:
            answers.append(held)
            other.close()
            answers.append(claims.reap("dead", claims.is_read))
        return held

    one.close()
    monkeypatch.setattr(KernelLock, "is_held_elsewhere", leave_after_the_look)
    assert claims.reap("dead", claims.is_read)
    assert answers == [True, False]
    assert segment.names() == []


def test_a_file_that_took_the_dead_ones_place_is_left_alone(start: Start, blob: str) -> None:
    writer = start(roles.write, blob, {"name": "dead"}, "after write")
    assert writer.hear() == "dead"
    writer.say(["append", 1, 10])
    writer.wait_killed()
    left = Path(partial.partial_path(blob))
    mine = Path(blob + ".mine")
    mine.write_bytes(b"somebody's")  # before the other file goes, so that the inode differs
    mine.rename(left)
    assert sweep() == ["dead"]
    assert left.read_bytes() == b"somebody's"
    left.unlink()


def test_a_slot_never_has_the_same_doorbell_twice(blob: str) -> None:
    with BlobStreamer.create(blob, max_subscribers=1, publish_interval=0) as streamer:
        names = set()
        for _ in range(5):
            with InFlightCopier.attach(streamer.name):
                [(_, name)] = doorbell.names(streamer._block.token)
                names.add(name)
        assert len(names) == 5


def test_a_dead_readers_doorbell_goes_with_its_slot(start: Start, blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        crowd = start(roles.crowd, streamer.name, 3)
        assert crowd.hear() == "attached"
        crowd.kill()
        assert len(list(doorbell.names(streamer._block.token))) == 3

        def are_gone() -> bool:
            streamer.append(b".")
            return not list(doorbell.names(streamer._block.token))

        wait_until(are_gone)
        with streamer._block.memberships() as memberships:
            assert not any(word & 1 for word in memberships)


def test_progress_elsewhere_is_no_stall(blob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that waits far ahead of the tail is patient for as long as the tail moves."""
    patience, pause, pieces = 0.5, 0.125, 12
    now = 0.0
    monkeypatch.setattr("shmstream.stream.waiter.time", SimpleNamespace(monotonic=lambda: now))
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name, stall_timeout=patience) as reader:
            reader.seek(1000)

            def wait(seconds: float) -> bool:
                """A piece comes with each ring, every `pause` seconds; then none comes any more."""
                nonlocal now
                is_rung = streamer.published < pieces
                now += pause if is_rung else seconds
                if is_rung:
                    streamer.append(b"x")
                return is_rung

            assert reader._tail._subscription is not None
            monkeypatch.setattr(reader._tail._subscription.doorbell, "wait", wait)
            with pytest.raises(WriterStalled):
                reader.read1()
            assert streamer.published == pieces, "it outlived its patience, for there was progress"
            assert now == pieces * pause + patience


def test_a_commit_between_two_loads_is_never_a_short_end(
    monkeypatch: pytest.MonkeyPatch, blob: str
) -> None:
    """`published` is loaded after the state. In the other order the last bytes would be lost."""
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        with InFlightCopier.attach(streamer.name) as reader:
            conclude = Tail._conclude

            def conclude_while_it_commits(self: Tail, position: int) -> int:
                load = self.load

                def load_then_commit() -> int:
                    published = load()
                    if streamer.size is None:
                        streamer.transfer([b"the last bytes"])
                    return published

                self.load = load_then_commit
                try:
                    return conclude(self, position)
                finally:
                    self.load = load

            monkeypatch.setattr(Tail, "_conclude", conclude_while_it_commits)
            monkeypatch.setattr("shmstream.stream.stream.Stream.is_orphaned", lambda _: True)
            with pytest.raises(WriterDied):  # which no real writer can bring about
                reader.read1()
            assert reader.read() == b"the last bytes"
