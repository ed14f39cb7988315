"""The raw limit (raw_limit.py) as a peer, to see how much of a cost is any server's."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.peers.peer import Launch, Seat

_PROGRAM = Path(__file__).with_name("raw_limit.py")


@dataclass(frozen=True)
class RawLimit:
    """One process that does only what must be done."""

    name: str = "raw"
    title: str = "raw limit"
    settings: str = (
        "splice to a file, SHA-256 of it once, sendfile; one process, no protocol, no coordination"
    )

    def version(self) -> str:
        """Of Python, which runs it."""
        return f"Python {platform.python_version()}"

    def launches(self, seat: Seat) -> list[Launch]:
        """Its one program."""
        folder = seat.mkdir("disk")
        command = [sys.executable, str(_PROGRAM), str(seat.port.number), str(seat.origin)]
        return [Launch([*command, str(folder)], seat.port)]


RAW = RawLimit()
