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

And how one key reaches every process of a host that asks for it:

    Store.open   store.py      one call, complete or in flight or absent; the folder is layout.py
    a flight     flight.py     lead, follow, or take over, decided by kernel locks
                 leader.py     bring the bytes: sources in turn (attempts.py), journal.py to
                               resume, commit
                 resumable.py  a streamer that another process can succeed
    a source     sources.py    what users call a source; source.py, fsspec_source.py,
                               http_source.py (http_client.py: asks; http_body.py: has the
                               kernel move the answer to the file)
    reading      blob.py       a file that goes on whoever leads; aio.py, lookout.py in asyncio
    over HTTP    asgi.py       a response, decided by answer.py, its body sent by sending.py;
                               server.py: zero-copy for uvicorn
    without room passing.py    each client gets it straight from the source
                 descriptors.py: room for many clients
    housekeeping audit.py      check and gc; invariants.py, seal.py: what check goes by;
                 upkeep.py     a store keeps to its limit
    a registry   registry/     the pull-through OCI registry, `shmstream serve`

The floors: errors | control, segment, doorbell, liveness, pacer, mover, source, digest, journal,
seal, events, units, answer | claims, subscribers, http_client, http_body, fsspec_source, attempts |
stream, partial, http_source | streamer, tail, sources, invariants | copier, resumable, layout |
audit | upkeep | leader | flight | blob | lookout | aio | passing | store, sending | asgi, server,
watch | registry | demo | cli. A room imports only rooms on lower floors.
"""

import logging

from shmstream.errors import (
    BlobAborted,
    BlobNotFound,
    CannotStart,
    ContentChanged,
    DamagedBlob,
    DamagedPartial,
    DamagedSegment,
    DigestMismatch,
    FailureKind,
    ForeignSegment,
    IllegalTransition,
    NoFreeSlot,
    OutOfResources,
    OutOfRoom,
    ShmstreamError,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StoreError,
    StoreUnusable,
    StreamBroken,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    TooManyFlights,
    WriterDied,
    WriterStalled,
)
from shmstream.events import Event, EventKind
from shmstream.flight.async_blob import AsyncBlob
from shmstream.flight.blob import Blob, Progress
from shmstream.flight.flight import Role
from shmstream.sources.base import Description, Feed, Source
from shmstream.sources.retries import Retries
from shmstream.storage.check import Finding
from shmstream.storage.flights import FlightInfo
from shmstream.store import Store
from shmstream.stream.claims import sweep
from shmstream.stream.control_block import State
from shmstream.stream.reader import CopierStatistics, InFlightCopier
from shmstream.stream.subscribers import Subscriber
from shmstream.stream.writer import BlobStreamer, StreamerStatistics

logging.getLogger("shmstream").addHandler(logging.NullHandler())  # who wants events says so

__version__ = "0.1.0"

__all__ = [
    "AsyncBlob",
    "Blob",
    "BlobAborted",
    "BlobNotFound",
    "BlobStreamer",
    "CannotStart",
    "ContentChanged",
    "CopierStatistics",
    "DamagedBlob",
    "DamagedPartial",
    "DamagedSegment",
    "Description",
    "DigestMismatch",
    "Event",
    "EventKind",
    "FailureKind",
    "Feed",
    "Finding",
    "FlightInfo",
    "ForeignSegment",
    "IllegalTransition",
    "InFlightCopier",
    "NoFreeSlot",
    "OutOfResources",
    "OutOfRoom",
    "Progress",
    "Retries",
    "Role",
    "ShmstreamError",
    "SizeMismatch",
    "Source",
    "SourceError",
    "SourceFailed",
    "State",
    "Store",
    "StoreError",
    "StoreUnusable",
    "StreamBroken",
    "StreamClosed",
    "StreamExists",
    "StreamNotFound",
    "StreamerStatistics",
    "Subscriber",
    "TooManyFlights",
    "WriterDied",
    "WriterStalled",
    "sweep",
]
