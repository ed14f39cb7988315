"""The command line of a measurement, and how its sections are run.

Each measurement has counts, such as `--rounds`, with a usual value and one for `--quick`, where
everything is tried and nothing is meant. A measurement of sections prints one table of all rows,
and writes them to `--json`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.crew import CrewFailed
from bench.page import write
from bench.report import MIB, CheckFailed, Options, Row, as_json, machine, page, progress, table
from bench.server import NotServing
from shmstream import sweep

Measure = Callable[[Options], list[Row]]


class Count(NamedTuple):
    """An option that is a number of at least 1: its usual value, and that for `--quick`."""

    usual: int
    quick: int
    of: str = ""
    unit: str | None = None


class Command:
    """The options of one measurement; `doc` is the docstring of its module."""

    def __init__(self, doc: str | None, counts: Mapping[str, Count]) -> None:
        summary, _, rest = (doc or "").partition("\n")
        self.parser = argparse.ArgumentParser(
            description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._counts = counts
        for name, each in counts.items():
            told = f"{each.of} ({each.usual})".strip()
            self.parser.add_argument(f"--{name}", type=int, metavar=each.unit, help=told)
        self.parser.add_argument("--dir", type=Path, help="folder for the files (the temp folder)")
        quick = ", ".join(f"{each.quick} {name}" for name, each in counts.items())
        self.parser.add_argument("--quick", action="store_true", help=f"only try it out: {quick}")

    def has_sections(self, sections: Iterable[str], *, can_pin: bool = False) -> None:
        """Add the options of a measurement of sections; `--pin` if its processes can be tied."""
        add = self.parser.add_argument
        add("--json", type=Path, metavar="FILE", help="write all figures there")
        add("--docs", type=Path, metavar="PAGE", help="write the table there, between its marks")
        add("--only", nargs="+", choices=[*sections], metavar="SECTION", default=[])
        if can_pin:
            add("--pin", action="store_true", help="tie each process to a processor")

    def parse(self) -> argparse.Namespace:
        """What was chosen, with all counts. Exits with a message if a count is less than 1."""
        chosen = self.parser.parse_args()
        for name, each in self._counts.items():
            if getattr(chosen, name) is None:
                setattr(chosen, name, each.quick if chosen.quick else each.usual)
            if getattr(chosen, name) < 1:
                self.parser.error(f"--{name} is positive")
        return chosen


def run(
    name: str,
    chosen: argparse.Namespace,
    prepare: Callable[[Options, ExitStack], Mapping[str, Measure]],
) -> int:
    """Measure, print the table, write the JSON and the table of a page; the exit code.

    `name` is that of the marks in the page.
    `prepare` returns what measures each section; what it enters into the stack is closed at the
    end.
    """
    size, pin = getattr(chosen, "size", 0) * MIB, getattr(chosen, "pin", False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        options = Options(Path(folder), size, chosen.rounds, chosen.quick, pin)
        facts = machine(options.folder)
        try:
            with ExitStack() as stack:
                for section, measure in prepare(options, stack).items():
                    if not chosen.only or section in chosen.only:
                        rows += measure(options)
        except (CheckFailed, CrewFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
        finally:
            sweep()  # after a failure, what a killed writer or leader has left
    print(table(facts, rows))
    if chosen.json:
        chosen.json.write_text(as_json(facts, options, rows), encoding="utf-8")
    if chosen.docs:
        write(chosen.docs, name, page(facts, options, rows))
    return 0
