"""`shmstream demo`: a blob and four acts; a reader, a leader, a worker and a node are killed."""

from __future__ import annotations

import importlib.util
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console

from shmstream import sweep
from shmstream.demo import fanout, pull, takeover
from shmstream.demo.sample import make_sample
from shmstream.demo.screen import conclude
from shmstream.demo.stage import Stage, digest_of, temporary_folder
from shmstream.units import amount

_SAMPLE_SIZE = 32 << 20  # bytes
_ACTS = {
    1: ("first", fanout.run, "", "", ""),
    2: ("second", takeover.run, "", "", ""),
    3: ("third", pull.run, "serve", "uvicorn prometheus_client uvloop", ""),
    4: ("fourth", takeover.run_nodes, "cluster", "redis", "redis-server"),
}
"""Number -> name, function, the extra that the act needs, the modules of that extra, a program.

The function plays the act. It returns the readers, what was found, and what that proves.
"""


def run(
    console: Console, source: Path | None, rate: float | None, count: int, act: int | None
) -> bool:
    """Show that act, or all acts; returns whether everything went as it should.

    Without a `source`, the blob is made of what every machine has. `rate` and `count` are those of
    a `Stage`; with a `count` of 1 there is nobody to take over, and no second act.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    good = True
    with ExitStack() as undo:
        folder, what = temporary_folder(undo), str(source)
        undo.callback(sweep)  # what killed processes have left, if the demo is stopped
        if source is None:
            source = folder / "sample.tar"
            what = make_sample(source, _SAMPLE_SIZE)
        size, digest = source.stat().st_size, digest_of(source)
        chunk_size = max(min(size // 100, 65536), 1)
        stage = Stage(console, undo, folder, source, size, digest, chunk_size, rate, count)
        stage.say("shmstream demo: pull once, stream to everyone on the host", "bold")
        stage.say(f"blob      {amount(size)}, {what}")
        for number in _ACTS if act is None else [act]:
            if number != 2 or count > 1:
                stage.say()
                good &= _show(stage, number)
    return good


def _show(stage: Stage, number: int) -> bool:
    """Show one act, or tell what it needs; returns whether everything went as it should."""
    name, play, extra, modules, program = _ACTS[number]
    if any(importlib.util.find_spec(each) is None for each in modules.split()):
        stage.say(f"The {name} act needs: pip install 'shmstream[{extra}]'")
        return True
    if program and shutil.which(program) is None:
        stage.say(f"The {name} act needs {program}, as in: apt-get install {program}")
        return True
    with ExitStack() as undo:
        stage = replace(stage, folder=stage.folder / name, undo=undo)
        stage.folder.mkdir()
        readers, facts, moral = play(stage)
        processes = psutil.Process().children(recursive=True)  # they have to end with the act
    facts.append(stage.left_over(processes))
    return conclude(stage.console, readers, facts, moral)
