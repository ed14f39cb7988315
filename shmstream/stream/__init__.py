"""One writer and many readers of one blob, in any processes of this host. Usable by itself.

    writer    `BlobStreamer` appends chunks to a partial file, and publishes how many there are
    reader    `InFlightCopier` waits for the chunks, and copies them from the file

The chunk count lies in shared memory (`control_block`, `segment`). Each reader has a semaphore that
the writer posts (`subscribers`, `doorbell`). A kernel lock tells whether a writer or a reader is
alive (`claims`). docs/protocol.md describes the whole protocol.
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
