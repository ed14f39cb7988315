"""One writer and many readers of one blob, in any processes of this host. Usable by itself.

writer              `BlobStreamer` appends chunks to a partial file, and publishes their bytes
reader              `InFlightCopier` waits for the chunks, and copies them from the file
growing_file        the reading methods of a file to which another process appends
control_block       what all processes know of a stream, in shared memory
segment             that shared memory: create, attach, unlink, list
listing             the names of all segments and doorbells of the host
mapping             the mapped memory of one segment, by `multiprocessing`
subscribers         which readers there are, and how each of them is woken
doorbell            the semaphore of one reader
pacer               decides when appended bytes are published
waiter              how a reader waits for bytes without losing a wake-up
partial             the file that the writer appends to
writeback           has the disk begin to write that file while it grows
spelling            how people write a digest, and which algorithms can be verified
digest              the running digest of that file
seal                the mark of a file whose bytes were verified
stream              one stream as any process sees it: its segment, its block and its locks
claims              how streams come to be, and how those of dead processes are removed
described_writer    a writer that tells its readers what the blob is
resumable_writer    a writer whose stream another process can go on with
invariants          whether a stream keeps its invariants, as any process sees it

A kernel lock tells whether a writer or a reader is alive. docs/protocol.md describes the whole
protocol.
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
