"""`shmstream demo`: one blob and three acts, with readers, a leader and a worker to be killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from shmstream.demo import fanout, pull, takeover
from shmstream.demo.sample import make_sample
from shmstream.demo.scene import Scene, sha256_of
from shmstream.demo.screen import introduce, say
from shmstream.system.signals import undisturbed
from shmstream.units import amount

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
        size, sha256 = source.stat().st_size, sha256_of(source)
        title = "shmstream demo: pull once, stream to everyone on the host"
        introduce(console, title, [("blob", f"{amount(size)}, {what}")])
        if 1 in acts:
            good = fanout.run(console, Scene(size, sha256), source, folder, rate, count)
            say(console)
        if 2 in acts and count > 1 and _can(console, "second", "http", "urllib3"):
            scene = Scene(size, sha256, is_flight=True)
            good &= takeover.run(console, scene, source, folder / "flight", rate, count)
            say(console)
        if 3 in acts and _can(console, "third", "serve", "uvicorn", "prometheus_client", "uvloop"):
            (folder / "registry").mkdir()
            good &= pull.run(console, source, folder / "registry", rate, count)
    return good


def _can(console: Console, act: str, extra: str, *modules: str) -> bool:
    """Whether what an act needs is installed; else tell."""
    missing = any(importlib.util.find_spec(each) is None for each in modules)
    if missing:
        say(console, f"The {act} act needs: pip install 'shmstream[{extra}]'")
    return not missing


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed in the end."""
    with ExitStack() as undo:
        with undisturbed():
            folder = undo.enter_context(TemporaryDirectory(prefix="shmstream-demo-"))
        yield Path(folder)
