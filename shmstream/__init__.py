"""Pull a blob once, and stream it to every process on the host while it is still arriving.

    Store             one call for a blob that is complete, in flight or absent
    BlobStreamer      one writer of a blob ...
    InFlightCopier    ... and any number of readers, in any processes, while it is written
    HTTPSource        and other sources: `shmstream.sources`
    InFlightResponse  a blob as an HTTP response: `shmstream.asgi`
    Cluster           other nodes, which have the same blobs
    create_app        a pull-through registry: `shmstream.registry`

docs/ARCHITECTURE.md draws the wings of this package, and tells in which file each step is. The
docstring of each wing lists its files. docs/glossary.md explains the words.
"""

import logging

from shmstream.cluster.cluster import Cluster
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
from shmstream.sources.command import CommandSource
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
    "Cluster",
    "CommandSource",
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
