"""A `Crew`: interpreters that do one job each, and pass their gates together.

The interpreters are started once and used for every measurement, so that neither starting Python
nor importing is ever on the clock. A job is a function that is given a `gate`. A call of the gate
waits until every job of the run has called it, so everything before the first call is preparation.

    parent                                  each interpreter
    1 send every job                        2 prepare, say so, wait for its semaphore
    3 all have said so: post every one      4 read the clock, do the work, call the gate again ...
    5 collect the answers                   ... or answer

Each interpreter has a semaphore of its own: from a common semaphore a fast job at its second gate
would take what was posted for a slow job at its first gate.

An interpreter that fails prints its traceback and ends; then the whole crew is ended, and `run`
raises `CrewFailed`.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import TypeVar

from bench.closing import Closing

T = TypeVar("T")

Gate = Callable[[], None]
Job = Callable[[Gate], T]


class CrewFailed(Exception):
    """An interpreter ended before it had answered."""


class Crew(Closing):
    """`count` interpreters. With `pin`, number i runs on processor i modulo their number only."""

    def __init__(self, count: int, *, pin: bool = False) -> None:
        # Not fork: a reader must not share memory, or an interpreter's state, with the writer.
        context = multiprocessing.get_context("spawn")
        self._members: list[tuple[SpawnProcess, Connection, Semaphore]] = []
        processors = sorted(os.sched_getaffinity(0))
        for index in range(count):
            ours, theirs = context.Pipe()
            gate = context.Semaphore(0)
            only = {processors[index % len(processors)]} if pin else None
            arguments = (theirs, gate, only)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours, gate))

    def run(self, jobs: Sequence[Job[T]], before: Gate | None = None) -> list[T]:
        """Do every job in an interpreter of its own, at most `count`; their answers, in order.

        `before` is called each time all jobs are at a gate, just before the gate opens.

        Raises:
            CrewFailed: a job raised an exception, which its interpreter has printed.
        """
        members = self._members[: len(jobs)]
        pipes = [pipe for _, pipe, _ in members]
        for pipe, job in zip(pipes, jobs, strict=True):
            pipe.send(job)
        answers: dict[int, T] = {}
        at_gate = 0
        while len(answers) < len(jobs):
            waiting = [pipe for index, pipe in enumerate(pipes) if index not in answers]
            for index in [pipes.index(each) for each in wait(waiting) if each in pipes]:
                try:
                    message: tuple[T] | None = pipes[index].recv()
                except EOFError:
                    raise CrewFailed(f"interpreter {index} of {len(jobs)} failed") from None
                if message is None:
                    at_gate += 1
                else:
                    answers[index] = message[0]
            if at_gate == len(jobs):
                at_gate = 0
                if before is not None:
                    before()
                for _, _, gate in members:
                    gate.release()
        return [answers[index] for index in range(len(jobs))]

    def close(self) -> None:
        """End the interpreters; interpreters that are not idle are killed."""
        for _, pipe, _ in self._members:
            pipe.close()
        for process, _, _ in self._members:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._members.clear()


def shared_words(path: str) -> memoryview:
    """The file at `path`, of a multiple of 8 bytes, as 64-bit words that a whole crew shares."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")  # the view keeps the mapping


def _work(pipe: Connection, semaphore: Semaphore, only: set[int] | None) -> None:
    if only is not None:
        os.sched_setaffinity(0, only)

    def gate() -> None:
        pipe.send(None)
        semaphore.acquire()

    while True:
        try:
            job: Job[object] = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send((job(gate),))
