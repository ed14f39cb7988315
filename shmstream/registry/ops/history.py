"""`History`: the bytes of the last ten minutes, with which the chart of the status page begins.

All workers share one file, in the folder of the metrics. It is a ring of 120 records, one for each
period of five seconds of the monotonic clock, which all processes read alike:

    record       time, bytes to clients, bytes from upstreams, checksum of these three
    its place    the number of the period, modulo 120

The bytes are sums over all workers. So any worker can note them, and a worker that is killed takes
none of them away. Each worker looks once in a period, at a moment that depends on its process id,
and notes the sums if no worker has noted them in this period:

    worker A                                      worker B
    1 what time is it? its period has no record
                                                  1 what time is it? its period has no record
    2 read the sums
                                                  2 read the sums, write the record
    3 write the record

Both records are true, and the later one stays. A process that reads the file in the middle of a
write finds a wrong checksum, and leaves that record out.

A worker that counts for itself alone remembers for itself alone.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

FILE = "history"
"""The name of the file, beside the metrics."""
PERIOD = 5.0
"""Seconds; there is one record for each period."""

_SUMS = struct.Struct("=3d")
_CHECKSUM = struct.Struct("=I")
_RECORD = _SUMS.size + _CHECKSUM.size  # bytes
_RECORDS = 120


@dataclass(frozen=True)
class Sample:
    """The sums over all workers at one moment."""

    time: float
    """On the monotonic clock."""
    served: float
    """Bytes to clients, since the server was started."""
    upstream: float
    """Bytes from upstreams, likewise."""

    def to_bytes(self) -> bytes:
        """The record of this sample."""
        sums = _SUMS.pack(*astuple(self))
        return sums + _CHECKSUM.pack(zlib.crc32(sums))

    @classmethod
    def from_bytes(cls, record: bytes) -> Sample | None:
        """The sample of a record; None if there is none, or half of one."""
        sums, checksum = record[: _SUMS.size], record[_SUMS.size :]
        if len(record) != _RECORD or checksum != _CHECKSUM.pack(zlib.crc32(sums)):
            return None
        return cls(*_SUMS.unpack(sums))


class History:
    """The samples of the last ten minutes, of all workers. Reads and writes a file, in any thread.

    It is for people to look at: if there is no space for the file, or no folder any more, samples
    are missing, and no error is raised.
    """

    def __init__(self, folder: str | None, period: float = PERIOD) -> None:
        """`folder` has the metrics of all workers; None: remember for this process alone."""
        self._path = None if folder is None else Path(folder, FILE)
        self._own = bytearray(_RECORDS * _RECORD)
        self._period = period

    def pause(self) -> float:
        """Seconds until this process should look again whether this period has a sample."""
        mine = self._period * (os.getpid() % 100) / 100
        return self._period - (time.monotonic() - mine) % self._period

    def note(self, sums: Callable[[], tuple[float, float]]) -> None:
        """Note the bytes that `sums` returns, to clients and from upstreams, if nobody has yet."""
        moment = time.monotonic()
        place = self._place(moment)
        noted = Sample.from_bytes(self._read()[place : place + _RECORD])
        if noted is None or noted.time // self._period != moment // self._period:
            self._write(place, Sample(moment, *sums()).to_bytes())

    def samples(self) -> list[Sample]:
        """The samples of the last ten minutes, the oldest one first. The sums never fall.

        Sums that are greater than later ones are left out: the counts began again after them, or
        the worker was stopped for a while between the moment of the sample and its sums.
        """
        data, now = self._read(), time.monotonic()
        places = range(0, len(data), _RECORD)
        whole = filter(None, (Sample.from_bytes(data[at : at + _RECORD]) for at in places))
        kept: list[Sample] = []
        for each in sorted(whole, key=lambda it: it.time, reverse=True):
            if not now - _RECORDS * self._period < each.time <= now:
                continue
            if not kept or (each.served <= kept[-1].served and each.upstream <= kept[-1].upstream):
                kept.append(each)
        return kept[::-1]

    def _place(self, moment: float) -> int:
        """Where the record of that moment's period begins."""
        return int(moment // self._period) % _RECORDS * _RECORD

    def _read(self) -> bytes:
        if self._path is None:
            return bytes(self._own)
        with suppress(OSError), self._path.open("rb") as file:
            return file.read(_RECORDS * _RECORD)
        return b""

    def _write(self, place: int, record: bytes) -> None:
        if self._path is None:
            self._own[place : place + _RECORD] = record
            return
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, record, place)
            finally:
                os.close(fd)
