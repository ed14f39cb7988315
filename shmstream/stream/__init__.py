"""One writer and many readers of one blob, in any processes of this host. Usable by itself.

    writer    `BlobStreamer` appends chunks to a partial file, and publishes how many there are
    reader    `InFlightCopier` waits for them, and copies them from the file

The chunk count lies in shared memory (`control_block`, `segment`); each reader has a semaphore that
the writer posts (`subscribers`, `doorbell`). Whether a process lives, its kernel lock tells
(`claims`). docs/protocol.md has all of it.
"""

from shmstream.stream.claims import sweep
from shmstream.stream.control_block import State
from shmstream.stream.reader import CopierStatistics, InFlightCopier
from shmstream.stream.subscribers import Subscriber
from shmstream.stream.writer import BlobStreamer, StreamerStatistics

__all__ = [
    "BlobStreamer",
    "CopierStatistics",
    "InFlightCopier",
    "State",
    "StreamerStatistics",
    "Subscriber",
    "sweep",
]
