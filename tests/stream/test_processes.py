"""Any kind of process: spawned, forked, served, plain subprocesses, threads; early and late."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmstream import BlobStreamer, InFlightCopier, StreamClosed, StreamNotFound
from shmstream.stream import segment
from tests.support import roles
from tests.support.interpreters import PATIENCE, Interpreter

Start = Callable[..., Interpreter]
SIZE = 3_000_000


def read_into_queue(name: str, queue: multiprocessing.SimpleQueue[str]) -> None:
    with InFlightCopier.attach(name) as copier:
        queue.put(roles.sha256(copier.read()))


def write_blob(path: str, name: str, have_read: Any) -> None:
    with BlobStreamer.create(path, name=name) as streamer:
        streamer.transfer(roles.pieces(1, SIZE))
        have_read.wait(PATIENCE)


def use_and_forget(path: str, name: str) -> None:
    """Neither closes nor commits anything."""
    globals()["kept"] = BlobStreamer.create(path, name=name)
    globals()["kept_too"] = InFlightCopier.attach(name)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_readers_of_multiprocessing(method: str, blob: str) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    with BlobStreamer.create(blob) as streamer:
        workers = [
            context.Process(target=read_into_queue, args=(streamer.name, queue)) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        streamer.transfer(roles.pieces(1, SIZE))
        digests = {queue.get() for _ in workers}
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
            worker.close()
    queue.close()
    assert digests == {roles.sha256(roles.content(1, SIZE))}


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_writer_of_multiprocessing(method: str, blob: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with BlobStreamer.create(blob + ".other"):  # so that a forked writer has something to inherit
        have_read = context.Event()
        worker = context.Process(target=write_blob, args=(blob, "worker", have_read))
        worker.start()
        with InFlightCopier.attach("worker", timeout=PATIENCE) as copier:
            assert copier.read() == roles.content(1, SIZE)
        have_read.set()
        worker.join()
        assert worker.exitcode == 0
        worker.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_exit_of_a_worker_without_closing(method: str, blob: str) -> None:
    context: Any = multiprocessing.get_context(method)
    worker = context.Process(target=use_and_forget, args=(blob, "forgotten"))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    worker.close()
    assert segment.names() == []


def test_readers_before_the_writer_and_after_the_commit(start: Start, blob: str) -> None:
    early = [start(roles.read, "born-later", {"timeout": PATIENCE}) for _ in range(2)]
    for reader in early:
        assert reader.hear() == "starting"
    whole = roles.content(1, SIZE)
    with BlobStreamer.create(blob, name="born-later") as streamer:
        middle = []
        for index in range(0, SIZE, SIZE // 3):
            streamer.append(whole[index : index + SIZE // 3])
            middle.append(start(roles.read, "born-later", {}))
            assert [middle[-1].hear(), middle[-1].hear()] == ["starting", "attached"]
        for reader in early:
            assert reader.hear() == "attached"
        streamer.commit()
        late = start(roles.read, "born-later", {})
        assert [late.hear(), late.hear()] == ["starting", "attached"]
        for reader in [*early, *middle, late]:
            outcome = reader.hear()
            assert (outcome["error"], outcome["sha256"]) == (None, roles.sha256(whole))
            assert reader.finish() == ""


def test_threads_of_one_process(blob: str) -> None:
    whole = roles.content(1, SIZE)
    results: list[bytes] = []

    def read() -> None:
        with InFlightCopier.attach(streamer.name) as copier:
            results.append(copier.read())

    with BlobStreamer.create(blob) as streamer:
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        streamer.transfer(roles.pieces(1, SIZE))
        for thread in threads:
            thread.join()
    assert results == [whole] * 8


def test_appending_from_several_threads(blob: str) -> None:
    def append(byte: bytes) -> None:
        for _ in range(200):
            streamer.append(byte * 1000)

    with BlobStreamer.create(blob, size=800_000) as streamer:
        threads = [
            threading.Thread(target=append, args=(byte,)) for byte in (b"a", b"b", b"c", b"d")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        streamer.commit()
    data = Path(blob).read_bytes()
    pieces = {data[start : start + 1000] for start in range(0, len(data), 1000)}
    assert pieces == {byte * 1000 for byte in (b"a", b"b", b"c", b"d")}


def test_an_inherited_copier_is_refused_and_the_parents_goes_on(blob: str) -> None:
    with BlobStreamer.create(blob, publish_interval=0) as streamer:
        streamer.append(b"one")
        with InFlightCopier.attach(streamer.name) as copier:
            assert copier.read1() == b"one"
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    copier.read1()
                except StreamClosed:
                    with InFlightCopier.attach(streamer.name) as own:
                        code = 0 if own.read1() == b"one" else 2
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            streamer.append(b"two")
            assert copier.read1() == b"two"
            assert len(streamer.statistics().subscribers) == 1


EXITS = """
import sys
from shmstream import BlobStreamer, InFlightCopier
streamer = BlobStreamer.create(sys.argv[1], name="exits")
streamer.append(b"x" * 100)
copier = InFlightCopier.attach("exits")
copier.read1()
streamer.append(b"y" * 100)  # starts the pacer's thread
{last}
"""


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("del streamer, copier", 0),
        (
            "import multiprocessing.shared_memory, multiprocessing.resource_tracker as t; "
            "t.ensure_running(); kept = multiprocessing.shared_memory.SharedMemory('shms-exits'"
            + (", track=False)" if sys.version_info >= (3, 13) else ")"),
            0,
        ),
    ],
)
def test_exit_without_closing_leaves_nothing(last: str, code: int, blob: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", EXITS.format(last=last), blob],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stderr
    assert segment.names() == []
    assert not Path(blob).exists()
    for noise in ("resource_tracker", "Exception ignored", "leaked", "BufferError"):
        assert noise not in done.stderr
    warned = done.stderr.count("ResourceWarning: <")
    assert warned == (2 if last.startswith("del") else 0), done.stderr


def test_readers_of_a_writer_that_exits_without_closing(start: Start, blob: str) -> None:
    writer = start(roles.write, blob, {})
    reader = start(roles.read, writer.hear(), {})
    assert [reader.hear(), reader.hear()] == ["starting", "attached"]
    writer.say(["append", 1, 1000])
    assert writer.hear() == "append"
    writer.say(["exit"])
    assert writer.hear() == "exit"
    writer.finish()
    outcome = reader.hear()
    assert (outcome["error"], outcome["bytes"]) == ("BlobAborted", 1000)
    assert "closed it without commit" in outcome["text"]


def test_the_tracker_never_hears_of_a_stream(start: Start, blob: str) -> None:
    """A reader's exit does not unlink the segment, nor does a killed writer's tracker."""
    writer = start(roles.write, blob, {"name": "tracked"})
    assert writer.hear() == "tracked"
    for _ in range(2):
        reader = start(roles.read_steps, "tracked", {})
        assert reader.hear() == "attached"
        reader.say(["leak"])
        assert reader.hear() == "leak"
        assert reader.finish() == ""
        assert segment.names() == ["tracked"]
    writer.say(["close"])
    assert writer.hear() == "close"
    assert writer.finish() == ""


# These take the alarm that would else end a test which hangs.
by_thread = pytest.mark.timeout(120, method="thread")


@by_thread
@pytest.mark.parametrize("handler", ["SystemExit", "KeyboardInterrupt", "TimeoutError"])
def test_what_a_signal_handler_raises_ends_a_wait(handler: str, blob: str) -> None:
    error = {
        "SystemExit": SystemExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "TimeoutError": TimeoutError,
    }[handler]

    def on_alarm(_signal: int, _frame: object) -> None:
        raise error

    previous = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with BlobStreamer.create(blob) as streamer:
            with InFlightCopier.attach(streamer.name) as copier:
                with pytest.raises(error):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    copier.read1()
                streamer.append(b"still here")
                assert copier.read1() == b"still here"
    finally:
        signal.signal(signal.SIGALRM, previous)


@by_thread
def test_signals_that_raise_nothing_do_not_end_a_wait(blob: str) -> None:
    rung = 0

    def on_alarm(_signal: int, _frame: object) -> None:
        nonlocal rung
        rung += 1
        if rung == 20:
            signal.setitimer(signal.ITIMER_REAL, 0)
            streamer.append(b"at last")  # from the handler, in the middle of the wait

    previous = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with BlobStreamer.create(blob) as streamer:
            with InFlightCopier.attach(streamer.name) as copier:
                signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
                assert copier.read1() == b"at last"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_attach_waits_no_longer_than_told() -> None:
    began = time.monotonic()
    with pytest.raises(StreamNotFound) as caught:
        InFlightCopier.attach("nobody", timeout=0.1)
    assert 0.1 <= time.monotonic() - began < PATIENCE
    assert caught.value.waited == 0.1
