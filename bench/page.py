"""What a measurement writes into a page of docs/, between its marks."""

from __future__ import annotations

from pathlib import Path

from bench.report import CheckFailed


def write(path: Path, name: str, text: str) -> None:
    """Put the text between `<!-- name: begin -->` and `<!-- name: end -->`.

    Raises:
        CheckFailed: the page has no such marks.
    """
    begin, end = (f"<!-- {name}: {each} -->" for each in ("begin", "end"))
    before, begins, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise CheckFailed(f"{path} has not the marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
