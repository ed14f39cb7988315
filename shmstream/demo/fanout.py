"""The first act of `shmstream demo`: the main job on a real blob, where everybody can watch.

A writer pulls the blob once, at a given rate. The readers, each an interpreter of its own, join at
staggered moments, the first before there is a byte, the last when 70 % are there. The first is
killed in the middle. In the end every survivor must have the digest of the blob, the file must
have it too, and nothing may be left over.
"""

from __future__ import annotations

import math
import secrets
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from shmstream.demo import screen
from shmstream.demo.parent import Reader, Readers
from shmstream.demo.reader import Orders
from shmstream.demo.scene import Part, Scene
from shmstream.demo.screen import Fact
from shmstream.demo.writer import Writer
from shmstream.stream import doorbell, segment
from shmstream.stream.partial import partial_path
from shmstream.stream.stream import Stream
from shmstream.stream.writer import BlobStreamer
from shmstream.system.signals import undisturbed

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
    size = scene.size
    path = folder / "blob"
    rate = size / _DURATION if rate is None else rate
    name = f"demo-{secrets.token_hex(4)}"
    screen.introduce_stream(console, name, rate, count)
    with ExitStack() as undo:
        with undisturbed():
            streamer = BlobStreamer.create(
                path,
                name=name,
                size=size,
                chunk_size=max(min(size // 100, 65536), 1),  # so that a small blob flows too
                digest=f"sha256:{scene.sha256}",
            )
            undo.enter_context(streamer)
        token = _token_of(name)
        # The readers end before the streamer, which then removes whatever they have left.
        readers = undo.enter_context(Readers())
        writer = undo.enter_context(Writer(streamer, source, rate))
        scene.parts = _cast(readers.start(count), size)
        with screen.view(console, scene) as view:
            _play(scene, streamer, readers, writer, view)
    facts = [screen.of_writer(scene, writer.elapsed, rate), *map(screen.of_kill, scene.parts)]
    facts += [screen.of_file(scene, path), _of_remains(name, token, path)]
    return screen.conclude(console, scene, [fact for fact in facts if fact is not None])


def _cast(readers: list[Reader], size: int) -> list[Part]:
    """Who joins when, and who is killed."""
    step = _LAST_JOINS / max(len(readers) - 1, 1)
    parts = [Part(reader, math.ceil(size * step * index)) for index, reader in enumerate(readers)]
    if len(parts) > 1:
        parts[0].dies_at = size // 2
    return parts


def _play(
    scene: Scene, streamer: BlobStreamer, readers: Readers, writer: Writer, view: screen.View
) -> None:
    first = scene.parts[0].reader
    _let_in(scene, streamer.name)
    readers.listen_until(lambda: first.has_joined)
    writer.start()
    while not (writer.is_done() and all(part.reader.is_gone for part in scene.parts)):
        readers.listen(_TICK)
        _observe(scene, streamer)
        _let_in(scene, streamer.name)
        _kill(scene)
        view.update()
    _observe(scene, streamer)
    view.update(final=True)


def _observe(scene: Scene, streamer: BlobStreamer) -> None:
    """See in shared memory how far everybody is."""
    seen = streamer.statistics()
    now = time.monotonic()
    scene.published = seen.published
    subscribers = {each.identity.pid: each for each in seen.subscribers}
    for part in scene.parts:
        part.see(subscribers.get(part.reader.pid), now)


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


def _token_of(name: str) -> int:
    """By which the stream's doorbells are known."""
    with Stream.attach(name) as stream:
        return stream.block.token


def _of_remains(name: str, token: int, path: Path) -> Fact:
    remains = [bell for _, bell in doorbell.names(token)]
    paths = (segment.path_of(name), partial_path(str(path)))
    remains += [each for each in paths if Path(each).exists()]
    return screen.of_remains(remains)
