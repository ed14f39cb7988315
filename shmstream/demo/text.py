"""`shmstream demo --text`: the concept program again, across interpreters.

A source gives up to five bytes a tick of a text of 104. Client 1 is there from the start and
writes `client1.txt`; client 2 joins in the middle, on standard output, gets at once what it has
missed, and follows. In the end all three are identical.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from shmstream.demo.acts import temporary_folder
from shmstream.demo.reader import STANDARD_OUTPUT, Orders, Reader, Readers, Report
from shmstream.demo.screen import say
from shmstream.stream.writer import BlobStreamer
from shmstream.system.signals import undisturbed

TEXT = (
    b"BlobStreamer transfers each blob once; "
    b"every InFlightCopier that subscribes late still copies it whole.\n"
)
CHUNK_SIZE = 5  # bytes
JOINS_AFTER = 10  # chunks; then client 2 comes


def run(console: Console, folder: Path, delay: float) -> bool:
    """Show it, with `delay` seconds between ticks; whether all three were identical.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end; then `client1.txt`
            is removed, as it is when the demo is stopped.
    """
    copy = folder.absolute() / "client1.txt"
    name = f"demo-{secrets.token_hex(4)}"

    def remove_unless_finished(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and copy.is_file():
            copy.unlink()

    say(console, "shmstream demo: the concept program, across interpreters", "bold")
    say(console, f"blob      {len(TEXT)} bytes, {CHUNK_SIZE} a tick, a tick every {delay:g} s")
    say(console, f"stream    {name}")
    with temporary_folder() as temporary, ExitStack() as undo:
        blob = temporary / "blob"
        with undisturbed():
            streamer = BlobStreamer.create(
                blob,
                name=name,
                size=len(TEXT),
                chunk_size=CHUNK_SIZE,
                digest=f"sha256:{_sha256(TEXT)}",
                publish_interval=0,
            )
            undo.enter_context(streamer)
        with Readers() as readers:
            clients = readers.start(2)
            say(console, f"client 1  pid {clients[0].pid}, writes {copy}")
            say(console, f"client 2  pid {clients[1].pid}, joins later, on standard output")
            say(console)
            undo.push(remove_unless_finished)
            clients[0].let_in(Orders(name, str(copy)))
            readers.listen_until(lambda: clients[0].has_joined)
            streamer.transfer(_ticks(console, streamer, readers, clients, delay))
            while not readers.are_gone:
                readers.listen()
        clients[0].result()
        return _conclude(console, clients[1].result(), copy, blob)


def _ticks(
    console: Console,
    streamer: BlobStreamer,
    readers: Readers,
    clients: list[Reader],
    delay: float,
) -> Iterator[bytes]:
    """The source. Between ticks it tells what has happened, until client 2 has the floor."""
    for number, start in enumerate(range(0, len(TEXT), CHUNK_SIZE)):
        time.sleep(delay)
        if 0 < number <= JOINS_AFTER:
            has = max((each.position for each in streamer.statistics().subscribers), default=0)
            told = TEXT[start - CHUNK_SIZE : start].decode()
            say(console, f"  chunk {number:>2}  {told!r:<9}  client 1 has {has} bytes")
        if number == JOINS_AFTER:
            say(console, f"\nclient 2 joins after {start} bytes:\n")
            clients[1].let_in(Orders(streamer.name, STANDARD_OUTPUT))
            readers.listen_until(lambda: clients[1].has_joined)
        yield TEXT[start : start + CHUNK_SIZE]


def _conclude(console: Console, client_2: Report, copy: Path, blob: Path) -> bool:
    """Compare the text with what each client made of it, and the file that was committed."""
    delay = 1000 * (client_2.first_byte or 0)
    caught_up = f"joined at byte {client_2.joined_at}, read {delay:.1f} ms later"
    rows = [
        ("source", len(TEXT), _sha256(TEXT), ""),
        ("client 1", copy.stat().st_size, _sha256(copy.read_bytes()), ""),
        ("client 2", client_2.count, client_2.sha256, caught_up),
    ]
    say(console)
    for who, count, sha256, note in rows:
        say(console, f"{who:<10}{count} bytes  sha256 {sha256[:12]}  {note}".rstrip())
    say(console)
    same = {sha256 for _, _, sha256, _ in rows} == {_sha256(blob.read_bytes())}
    verdict = "All three are identical." if same else "They are NOT identical."
    say(console, verdict, "bold green" if same else "bold red")
    return same


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
