"""TCP's congestion control of the whole system, for the time of a measurement.

Linux's default is cubic. Where it is BBR, the kernel sets a timer for each portion that is sent,
which on one host costs more than the sending.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import CheckFailed

_SYSTEM = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def current() -> str:
    """The system's, as it is now."""
    return _SYSTEM.read_text(encoding="utf-8").strip()


@contextmanager
def congestion_control(name: str) -> Iterator[None]:
    """Have all connections that are made in the block use the control `name`.

    Raises:
        CheckFailed: the kernel refuses it, or this user may not choose it.
    """
    before = current()
    if name != before:
        try:
            _SYSTEM.write_text(name, encoding="utf-8")
        except OSError as error:
            why = f"the congestion control is {before} and cannot be {name}: {error.strerror}"
            raise CheckFailed(f"{why}; be root, or say --congestion {before}") from error
    try:
        yield
    finally:
        if name != before:
            _SYSTEM.write_text(before, encoding="utf-8")
