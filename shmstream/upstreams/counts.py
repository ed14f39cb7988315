"""`Counts`: what is counted of upstreams, each by its label. This class itself counts nothing.

The label of an upstream is its namespace or its host; that of a mirror is its path. Labels come
from the settings alone, so there are few.
"""

from __future__ import annotations


class Counts:
    """Is told of questions to upstreams, and of bytes from them. Any thread may call it."""

    def asked(self, upstream: str, outcome: str) -> None:
        """A question to an upstream has ended: `answered`, `refused` or `failed`."""

    def received(self, upstream: str, count: int) -> None:
        """Bytes came from an upstream, and belong to no flight."""

    def comes_from(self, key: str, upstream: str) -> None:
        """From now on the bytes of a flight come from that upstream."""
