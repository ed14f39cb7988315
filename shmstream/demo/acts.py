"""`shmstream demo`: a blob and four acts; a reader, a leader, a worker and a node are killed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shmstream.demo import fanout, nodes, pull, takeover
from shmstream.demo.sample import make_sample
from shmstream.demo.stage import Stage, digest_of, temporary_folder
from shmstream.units import amount

_SAMPLE_SIZE = 32 << 20  # bytes
_ACTS = {
    1: ("first", fanout.run, "", "", ""),
    2: ("second", takeover.run, "http", "urllib3", ""),
    3: ("third", pull.run, "serve", "uvicorn prometheus_client uvloop", ""),
    4: ("fourth", nodes.run, "cluster", "redis urllib3", "redis-server"),
}
"""Number -> name, function, the extra that the act needs, the modules of that extra, a program."""

ALL = tuple(_ACTS)


def run(
    console: Console, source: Path | None, rate: float | None, count: int, acts: Collection[int]
) -> bool:
    """Show the acts with these numbers; returns whether everything went as it should.

    Without a `source`, the blob is made of what every machine has. `rate` and `count` are those of
    a `Stage`; with a `count` of 1 there is nobody to take over, and no second act.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    good = True
    with ExitStack() as undo:
        folder, what = temporary_folder(undo), str(source)
        if source is None:
            source = folder / "sample.tar"
            what = make_sample(source, _SAMPLE_SIZE)
        size, digest = source.stat().st_size, digest_of(source)
        chunk_size = max(min(size // 100, 65536), 1)
        stage = Stage(console, folder, source, size, digest, chunk_size, rate, count)
        stage.say("shmstream demo: pull once, stream to everyone on the host", "bold")
        stage.say(f"blob      {amount(size)}, {what}")
        for number in sorted(acts):
            name, act, extra, modules, program = _ACTS[number]
            if number == 2 and count == 1:
                continue
            stage.say()
            if any(importlib.util.find_spec(each) is None for each in modules.split()):
                stage.say(f"The {name} act needs: pip install 'shmstream[{extra}]'")
            elif program and shutil.which(program) is None:
                stage.say(f"The {name} act needs {program}, as in: apt-get install {program}")
            else:
                (folder / name).mkdir()
                good &= act(replace(stage, folder=folder / name))
    return good
