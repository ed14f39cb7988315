"""Pull a blob once, and stream it to every process on the host while it is still arriving.

How one blob flows, and where each step is:

    writer   BlobStreamer.create    streamer.py     claim a name and a partial file (claims.py)
             .append                streamer.py     write to disk; publish when due (pacer.py)
             publish                streamer.py     store the count (control.py), ring
                                    subscribers.py  every reader's semaphore (doorbell.py)
    reader   InFlightCopier.attach  copier.py       map the block (segment.py), take a slot
             .read / .copy          copier.py       wait for the ring (tail.py), copy from disk
                                                    (mover.py)
    writer   .commit                streamer.py     verify the digest, rename, say so
    anyone   sweep                  claims.py       remove what the dead have left (liveness.py)

The floors: errors | control, segment, doorbell, liveness, pacer, source, mover |
claims, subscribers | stream | streamer, tail | copier | demo | cli. A room imports only rooms
on lower floors.
"""

from shmstream.claims import sweep
from shmstream.control import State
from shmstream.copier import CopierStatistics, InFlightCopier
from shmstream.errors import (
    BlobAborted,
    CannotStart,
    DamagedPartial,
    DamagedSegment,
    DigestMismatch,
    ForeignSegment,
    IllegalTransition,
    NoFreeSlot,
    OutOfResources,
    ShmstreamError,
    SizeMismatch,
    StreamBroken,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    WriterDied,
    WriterStalled,
)
from shmstream.streamer import BlobStreamer, StreamerStatistics
from shmstream.subscribers import Subscriber

__version__ = "0.1.0"

__all__ = [
    "BlobAborted",
    "BlobStreamer",
    "CannotStart",
    "CopierStatistics",
    "DamagedPartial",
    "DamagedSegment",
    "DigestMismatch",
    "ForeignSegment",
    "IllegalTransition",
    "InFlightCopier",
    "NoFreeSlot",
    "OutOfResources",
    "ShmstreamError",
    "SizeMismatch",
    "State",
    "StreamBroken",
    "StreamClosed",
    "StreamExists",
    "StreamNotFound",
    "StreamerStatistics",
    "Subscriber",
    "WriterDied",
    "WriterStalled",
    "sweep",
]
