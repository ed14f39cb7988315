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

from shmstream.demo.readers import Part, Readers
from shmstream.demo.reading import STANDARD_OUTPUT, Orders, read_blob
from shmstream.demo.screen import say
from shmstream.demo.stage import digest_of, temporary_folder
from shmstream.stream.writer import BlobStreamer
from shmstream.system.signals import undisturbed

TEXT = (
    b"BlobStreamer transfers each blob once; "
    b"every InFlightCopier that subscribes late still copies it whole.\n"
)
CHUNK_SIZE = 5  # bytes
JOINS_AFTER = 10  # chunks; then client 2 comes


def run(console: Console, folder: Path, delay: float) -> bool:
    """Show it, with `delay` seconds between ticks; returns whether all three are identical.

    Raises:
        DemoFailed, ShmstreamError, OSError: it could not be shown to the end; then `client1.txt`
            is removed, as it is when the demo is stopped.
    """
    copy, name, size = folder.absolute() / "client1.txt", f"demo-{secrets.token_hex(4)}", len(TEXT)
    digest = f"sha256:{hashlib.sha256(TEXT).hexdigest()}"

    def remove_unless_finished(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and copy.is_file():
            copy.unlink()

    say(console, "shmstream demo: the concept program, across interpreters", "bold")
    say(console, f"blob      {size} bytes, {CHUNK_SIZE} a tick, a tick every {delay:g} s")
    say(console, f"stream    {name}")
    with ExitStack() as undo:
        blob = temporary_folder(undo) / "blob"
        with undisturbed():
            streamer = BlobStreamer.create(
                blob, name=name, size=size, chunk_size=CHUNK_SIZE, digest=digest, publish_interval=0
            )
            undo.enter_context(streamer)
        undo.push(remove_unless_finished)  # after the clients have ended
        clients = Readers(undo, Part("client", read_blob, Orders(), size, (digest,)), 2)
        say(console, f"client 1  pid {clients[0].pid}, writes {copy}")
        say(console, f"client 2  pid {clients[1].pid}, joins later, on standard output\n")
        clients[0].send(Orders(name, str(copy)))
        clients.listen_until(lambda: clients[0].has_joined)
        streamer.transfer(_text(console, streamer, clients, delay))
        clients.listen_until(lambda: all(each.report.event == "finished" for each in clients))
        return _conclude(console, clients, copy, digest, digest_of(blob))


def _text(console: Console, stream: BlobStreamer, clients: Readers, tick: float) -> Iterator[bytes]:
    """The source. Between ticks it prints what happens, until client 2 writes to the terminal."""
    for number, start in enumerate(range(0, len(TEXT), CHUNK_SIZE)):
        time.sleep(tick)
        if 0 < number <= JOINS_AFTER:
            has = max((each.position for each in stream.statistics().subscribers), default=0)
            told = TEXT[start - CHUNK_SIZE : start].decode()
            say(console, f"  chunk {number:>2}  {told!r:<9}  client 1 has {has} bytes")
        if number == JOINS_AFTER:
            say(console, f"\nclient 2 joins after {start} bytes:\n")
            clients[1].send(Orders(stream.name, STANDARD_OUTPUT))
            clients.listen_until(lambda: clients[1].has_joined)
        yield TEXT[start : start + CHUNK_SIZE]


def _conclude(console: Console, clients: Readers, copy: Path, source: str, committed: str) -> bool:
    """Compare the text, what each client has read, and the file that was committed."""
    report = clients[1].report
    [read] = report.digests
    waited = f"{1000 * (report.first_byte or 0):.1f} ms"
    caught_up = f"joined at byte {report.joined_at}, read {waited} later"
    say(console, f"\nsource    {len(TEXT)} bytes  sha256 {source[7:19]}")
    say(console, f"client 1  {copy.stat().st_size} bytes  sha256 {digest_of(copy)[7:19]}")
    say(console, f"client 2  {report.position} bytes  sha256 {read[7:19]}  {caught_up}\n")
    same = source == digest_of(copy) == read == committed
    verdict = "All three are identical." if same else "They are NOT identical."
    say(console, verdict, "bold green" if same else "bold red")
    return same
