"""`shmstream demo`: one blob and three acts, with readers, a leader and a worker to be killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from shmstream.demo import fanout, pull, screen, takeover
from shmstream.demo.parent import temporary_folder
from shmstream.demo.sample import make_sample
from shmstream.demo.scene import Scene

_SAMPLE_SIZE = 32 << 20  # bytes

ALL = (1, 2, 3)


def run(
    console: Console,
    source: Path | None,
    rate: float | None,
    count: int,
    acts: Collection[int] = ALL,
) -> bool:
    """Show the acts, each with `count` interpreters; whether everything went as it should.

    Args:
        console: where to show it.
        source: the file to stream; None for one that every machine has.
        rate: bytes a second, 0 for no limit, None for one that takes some seconds.
        count: at least 1. With one there is nobody to take over, and no second act.
        acts: which of them.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    good = True
    with temporary_folder() as folder:
        what = str(source)
        if source is None:
            source = folder / "sample.tar"
            what = make_sample(source, _SAMPLE_SIZE)
        size, sha256 = source.stat().st_size, screen.sha256_of(source)
        screen.introduce(console, Scene(size, sha256), what)
        if 1 in acts:
            good = fanout.run(console, Scene(size, sha256), source, folder, rate, count)
            screen.say(console)
        if 2 in acts and count > 1 and _can(console, "second", "http", "urllib3"):
            scene = Scene(size, sha256, is_flight=True)
            good &= takeover.run(console, scene, source, folder / "store", rate, count)
            screen.say(console)
        if 3 in acts and _can(console, "third", "serve", "uvicorn", "prometheus_client", "uvloop"):
            place = folder / "registry"
            place.mkdir()
            good &= pull.run(console, source, place, rate, count)
    return good


def _can(console: Console, act: str, extra: str, *modules: str) -> bool:
    """Whether what an act needs is installed; else tell."""
    missing = any(importlib.util.find_spec(each) is None for each in modules)
    if missing:
        screen.say(console, f"The {act} act needs: pip install 'shmstream[{extra}]'")
    return not missing
