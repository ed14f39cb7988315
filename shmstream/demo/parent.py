"""The parent's end of the demo's readers: start, let in, hear, kill.

A `Reader` is one interpreter. Its reports come through a pipe of which it holds the only other
end, so the end of that pipe is the end of the reader, however it came. `Readers` waits for the
reports of all of them at once.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from shmstream.demo.reader import Orders, Report
from shmstream.system.signals import undisturbed

ROOT = Path(__file__).parents[2]
"""From here other interpreters find the very package that we are."""

_DIRECTLY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}  # to an origin on this host


class DemoFailed(Exception):
    """The demo cannot go on; the message tells why."""


class Reader:
    """An interpreter that reads one blob. `report` is its last, None before the first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.report: Report | None = None
        self.is_let_in = False
        self.is_gone = False
        self._heard = b""
        self._pipe, theirs = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shmstream.demo.reader", str(theirs)],
                cwd=ROOT,
                env=os.environ | _DIRECTLY,
                stdin=subprocess.PIPE,
                pass_fds=[theirs],
            )
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)
        self.pid = self.process.pid

    @property
    def has_joined(self) -> bool:
        """Whether it has told that it is attached."""
        return self.report is not None and self.report.event in ("joined", "reading", "finished")

    def let_in(self, orders: Orders) -> None:
        """Send it to the blob, now."""
        self.is_let_in = True
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asdict(orders)).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has died, which the end of its reports tells
            pass

    def fileno(self) -> int:
        """The descriptor that is readable when it has reported something, or is gone."""
        return self._pipe

    def hear(self) -> None:
        """Take in what it has reported. Blocks when that is nothing."""
        data = os.read(self._pipe, 65536)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self.report = Report(**json.loads(line))
        if not data:
            self.is_gone = True
            self.process.wait()

    def result(self) -> Report:
        """What it made of the blob, once it is gone.

        Raises:
            DemoFailed: it did not get to the end.
        """
        if self.report is None or self.report.event != "finished":
            why = self.report.error if self.report is not None else ""
            why = why or f"exit code {self.process.returncode}"
            raise DemoFailed(f"reader {self.number} ended too early: {why}")
        return self.report

    def kill(self) -> None:
        """SIGKILL, and wait until it has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Let go of it; if it still runs, it is killed."""
        self.kill()
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # orders that it never read
            pass
        os.close(self._pipe)

    def __repr__(self) -> str:
        return f"<Reader {self.number} pid={self.pid} {self.report}>"


class Readers:
    """All readers of a demo; leaving it as a context manager ends them."""

    def __init__(self) -> None:
        self._all: list[Reader] = []
        self._reports = selectors.DefaultSelector()

    def start(self, count: int) -> list[Reader]:
        """Start so many, numbered from 1, and wait until each is ready to be let in.

        Raises:
            DemoFailed: one ended instead.
        """
        for number in range(1, count + 1):
            # A reader inherits that it cannot be disturbed: a terminal sends Ctrl-C to all of us,
            # and what it means for a reader is for us to say.
            with undisturbed():
                reader = Reader(number)
                self._all.append(reader)
                self._reports.register(reader, selectors.EVENT_READ)
        self.listen_until(lambda: all(reader.report for reader in self._all))
        return self._all

    def listen(self, patience: float | None = None) -> None:
        """Take in reports, waiting for the first for `patience` seconds (None: until it comes)."""
        for key, _ in self._reports.select(patience):
            reader = key.fileobj
            assert isinstance(reader, Reader)
            reader.hear()
            if reader.is_gone:
                self._reports.unregister(reader)

    def listen_until(self, condition: Callable[[], bool]) -> None:
        """Take in reports until `condition` holds.

        Raises:
            DemoFailed: it does not, and a reader has ended that should have made it true.
        """
        while not condition():
            for reader in self._all:
                if reader.is_gone:
                    reader.result()
            self.listen()

    def listen_to_the_end(self) -> None:
        """Take in reports until every reader is gone."""
        while not all(reader.is_gone for reader in self._all):
            self.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self._all:
            reader.close()
        self._reports.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed in the end."""
    with ExitStack() as undo:
        with undisturbed():
            folder = undo.enter_context(TemporaryDirectory(prefix="shmstream-demo-"))
        yield Path(folder)
