"""The table of `bench.fsspec` as Markdown, and its place in a page of docs/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import MIB, CheckFailed

_BEGIN, _END = "<!-- bench.fsspec: begin -->", "<!-- bench.fsspec: end -->"


def page(
    facts: Mapping[str, str], chosen: Mapping[str, Any], rows: Mapping[str, Mapping[str, float]]
) -> str:
    """The table, with the machine and the date under it."""
    head = (
        "through", "the origin sent", "requests", "first row", "last byte", "right",
        "after a kill: the origin sent", "right",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    for way, row in rows.items():
        cells = (
            f"`{way}::`",
            _files(row["sent"], chosen["size"]),
            f"{row['requests']:.0f}",
            _seconds(way, row["first"], row["first ratio"]),
            _seconds(way, row["last"], row["last ratio"]),
            _right(row, ""),
            _files(row["killed sent"], chosen["size"]),
            _right(row, "killed "),
        )
        lines.append("| " + " | ".join(cells) + " |")
    quick = " A quick run: its figures mean nothing." if chosen["quick"] else ""
    lines += [
        "",
        f"{chosen['processes']} processes, a file of {chosen['size']} MiB, {chosen['rate']} MiB/s "
        f"for each connection; medians of {chosen['rounds']} rounds, interleaved.{quick} "
        f"{facts['date'][:10]}, {facts['processor']}, {facts['cores']} cores, "
        f"Python {facts['python'].split()[-1]}, load before {facts['load before']}, "
        f"shmstream {facts['shmstream']}.",
    ]
    return "\n".join(lines)


def _files(sent: float, size: int) -> str:
    return f"{sent / MIB:.0f} MiB ({sent / MIB / size:.1f} x)"


def _seconds(way: str, value: float, ratio: float) -> str:
    return f"{value:.2f} s" + ("" if way == "shmstream" else f" ({ratio:.1f} x)")


def _right(row: Mapping[str, float], when: str) -> str:
    right, of, failed = row[f"{when}right"], row[f"{when}of"], row[f"{when}failed"]
    wrong = of - right - failed
    told = [f"{wrong:.0f} wrong"] if wrong else []
    told += [f"{failed:.0f} failed"] if failed else []
    return f"{right:.0f} of {of:.0f}" + (f" ({', '.join(told)})" if told else "")


def write(path: Path, text: str) -> None:
    """Put the text between the marks of the page.

    Raises:
        CheckFailed: the page has no marks.
    """
    before, begins, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, ends, after = rest.partition(_END)
    if not (begins and ends):
        raise CheckFailed(f"{path} has not the marks {_BEGIN} and {_END}")
    path.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")
