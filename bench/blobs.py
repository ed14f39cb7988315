"""Blobs of random bytes, for an origin to serve."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bench.report import MIB


def make(path: Path, size: int) -> str:
    """Write a file of `size` random bytes; their SHA-256, in hex."""
    running = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            piece = os.urandom(min(MIB, size - start))
            running.update(piece)
            file.write(piece)
    return running.hexdigest()
