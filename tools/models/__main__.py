"""`make model`: checks the models within all bounds, and prints how many states there are."""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tools.models import check, missing
from tools.models.bounds import MODELS, Model, Scope

_MEGABYTES = 4000  # of all checks that run at one time
_AT_ONE_TIME = 2


def _look(model: Model, scope: Scope) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        outcome = check(
            model.path, scope.bounds, Path(folder), megabytes=_MEGABYTES // _AT_ONE_TIME
        )
    print(
        f"| {scope.what} | {outcome.states:,} | {outcome.depth:,} | {outcome.megabytes:,.0f} "
        f"| {outcome.seconds:,.0f} |",
        flush=True,
    )
    if outcome.error is not None:
        print(f"{outcome.error}, after these steps:\n{outcome.trail}", file=sys.stderr)
    return outcome.error is None


def main() -> int:
    """The exit code: 1 if an assertion does not hold, 2 if a program is missing."""
    if lacking := missing():
        print(f"apt-get install {' '.join(lacking)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    are_right: list[bool] = []
    for model in MODELS:
        print(f"\n{model.path.name}\n\n| bounds | states | longest run, steps | MB | s |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        with ThreadPoolExecutor(_AT_ONE_TIME) as threads:
            are_right += threads.map(partial(_look, model), model.whole)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(are_right) else 1


if __name__ == "__main__":
    sys.exit(main())
