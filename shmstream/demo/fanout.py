"""The first act of `shmstream demo`: the main job on a real blob, where everybody can watch.

A writer pulls the blob once, at a given rate. The readers, each an interpreter of its own, join at
staggered moments, the first before there is a byte, the last when 70 % are there. The first is
killed in the middle. In the end every survivor must have the digest of the blob, the file must
have it too, and nothing may be left over.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from shmstream.demo import screen
from shmstream.demo.pace import paced
from shmstream.demo.reader import Orders, Reader, Readers
from shmstream.demo.scene import Part, Scene
from shmstream.demo.screen import Fact
from shmstream.stream import doorbell, segment
from shmstream.stream.partial import partial_path
from shmstream.stream.stream import Stream
from shmstream.stream.writer import BlobStreamer
from shmstream.system.signals import undisturbed
from shmstream.units import amount

_DURATION = 5.0  # s; how long it takes unless a rate is given
_LAST_JOINS = 0.7  # of the blob
_TICK = 0.02  # s; how often we look


def run(
    console: Console, scene: Scene, source: Path, folder: Path, rate: float | None, count: int
) -> bool:
    """Show it, with `count` readers, in `folder`; whether everything went as it should.

    Args:
        console: where to show it.
        scene: the blob, and nobody yet.
        source: the file to stream.
        folder: where to stream it to.
        rate: bytes a second, 0 for no limit, None for one that takes five seconds.
        count: readers, at least 1. One of two or more is killed.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end.
    """
    path = folder / "blob"
    rate = scene.size / _DURATION if rate is None else rate
    name = f"demo-{secrets.token_hex(4)}"
    readers_are = "1 interpreter" if count == 1 else f"{count} interpreters, one after another"
    readers_are += "; one of them is killed" if count > 1 else ""
    told = [("stream", f"{name}, one writer {screen.pace(rate)}"), ("readers", readers_are)]
    screen.introduce(console, "Readers come and go", told)
    with ExitStack() as undo:
        with undisturbed():
            streamer = BlobStreamer.create(
                path,
                name=name,
                size=scene.size,
                chunk_size=scene.chunk_size,
                digest=f"sha256:{scene.sha256}",
            )
            undo.enter_context(streamer)
        with Stream.attach(name) as stream:
            token = stream.block.token  # by which its doorbells are known
        # The readers end before the streamer, which then removes whatever they have left.
        readers = undo.enter_context(Readers())
        scene.begin(_cast(readers.start(count), scene.size))
        with screen.board(console, scene.rows) as update:
            elapsed = _play(scene, streamer, readers, source, rate, update)
    facts = [_of_writer(scene, elapsed, rate), *filter(None, map(_of_kill, scene.parts))]
    facts += [scene.of_file(path), _of_remains(name, token, path)]
    return scene.conclude(console, facts)


def _cast(readers: list[Reader], size: int) -> list[Part]:
    """Who joins when, and who is killed."""
    step = _LAST_JOINS / max(len(readers) - 1, 1)
    parts = [Part(reader, math.ceil(size * step * index)) for index, reader in enumerate(readers)]
    if len(parts) > 1:
        parts[0].dies_at = size // 2
    return parts


def _play(
    scene: Scene,
    streamer: BlobStreamer,
    readers: Readers,
    source: Path,
    rate: float,
    update: screen.Update,
) -> float:
    """Play it to its end; the seconds that the writer took."""
    first = scene.parts[0].reader
    _let_in(scene, streamer.name)
    readers.listen_until(lambda: first.has_joined)
    stopping = threading.Event()

    def write() -> float:
        began = time.monotonic()
        with source.open("rb") as file:
            streamer.transfer(paced(file.read, rate, stopping))
        return time.monotonic() - began

    with ThreadPoolExecutor(1, "demo-writer") as executor:
        writing = executor.submit(write)
        try:
            while not (writing.done() and readers.are_gone):
                if writing.done():
                    writing.result()  # raises what went wrong with it
                readers.listen(_TICK)
                _observe(scene, streamer)
                _let_in(scene, streamer.name)
                _kill(scene)
                update()
        finally:
            stopping.set()  # which aborts the stream, unless it is committed
    _observe(scene, streamer)
    update(final=True)
    return writing.result()


def _observe(scene: Scene, streamer: BlobStreamer) -> None:
    """See in shared memory how far everybody is."""
    seen, now = streamer.statistics(), time.monotonic()
    scene.published = seen.published
    subscribers = {each.identity.pid: each for each in seen.subscribers}
    for part in scene.parts:
        part.see(subscribers.get(part.reader.pid), now)
    scene.update_rows()


def _let_in(scene: Scene, name: str) -> None:
    for part in scene.parts:
        if not part.reader.is_let_in and scene.published >= part.joins_at:
            # The one to be killed never reads the last quarter: without a limit to the rate it
            # might have finished before anybody looks.
            stop_at = None if part.dies_at is None else scene.size * 3 // 4
            part.reader.let_in(Orders(name, stop_at=stop_at))


def _kill(scene: Scene) -> None:
    for part in scene.parts:
        if part.dies_at is not None and part.killed is None and part.position >= part.dies_at:
            part.reader.kill()
            part.killed = time.monotonic()


def _of_writer(scene: Scene, elapsed: float, rate: float) -> Fact:
    """How fast the writer was."""
    reached = scene.size / elapsed
    asked = f"{reached * 100 / rate:.0f} % of the rate asked for" if rate else "no limit was set"
    text = f"{amount(scene.size)} in {elapsed:.1f} s, that is {amount(reached)}/s; {asked}"
    return Fact("writer", text)


def _of_kill(part: Part) -> Fact | None:
    """What became of the slot of a reader that was killed; None for the others."""
    if part.killed is None:
        return None
    slot = "the stream was complete before the writer came to look after its slot"
    if part.slot_free_after is not None:
        slot = f"its slot was free again within {part.slot_free_after * 1000:.0f} ms"
    return Fact("kill", f"reader {part.reader.number} at {amount(part.position)}; {slot}")


def _of_remains(name: str, token: int, path: Path) -> Fact:
    remains = [bell for _, bell in doorbell.names(token)]
    paths = (segment.path_of(name), partial_path(str(path)))
    remains += [each for each in paths if Path(each).exists()]
    return screen.of_remains(remains)
