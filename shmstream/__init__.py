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

Each name is imported from its module when it is first asked for, so that `import shmstream` costs
next to nothing.
"""

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmstream.cluster.cluster import Cluster
    from shmstream.errors import (
        BlobAborted,
        BlobExists,
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
    from shmstream.flight.blob import Blob
    from shmstream.flight.blob_writer import BlobWriter
    from shmstream.flight.flight import Role
    from shmstream.flight.progress import Progress
    from shmstream.sources.base import Description, Feed, Source
    from shmstream.sources.command import CommandSource
    from shmstream.sources.retries import Retries
    from shmstream.storage.check import Finding, Findings
    from shmstream.storage.flights import FlightInfo
    from shmstream.storage.stock import Stock, StoredBlob
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
    "BlobExists",
    "BlobNotFound",
    "BlobStreamer",
    "BlobWriter",
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
    "Findings",
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
    "Stock",
    "Store",
    "StoreError",
    "StoreUnusable",
    "StoredBlob",
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

_ROOMS: dict[str, str] = {
    "shmstream.cluster.cluster": "Cluster",
    "shmstream.errors": (
        "BlobAborted BlobExists BlobNotFound CannotStart ContentChanged DamagedBlob "
        "DamagedPartial DamagedSegment DigestMismatch FailureKind ForeignSegment "
        "IllegalTransition NoFreeSlot OutOfResources OutOfRoom ShmstreamError SizeMismatch "
        "SourceError SourceFailed StoreError StoreUnusable StreamBroken StreamClosed "
        "StreamExists StreamNotFound TooManyFlights WriterDied WriterStalled"
    ),
    "shmstream.events": "Event EventKind",
    "shmstream.flight.async_blob": "AsyncBlob",
    "shmstream.flight.blob": "Blob",
    "shmstream.flight.blob_writer": "BlobWriter",
    "shmstream.flight.flight": "Role",
    "shmstream.flight.progress": "Progress",
    "shmstream.sources.base": "Description Feed Source",
    "shmstream.sources.command": "CommandSource",
    "shmstream.sources.retries": "Retries",
    "shmstream.storage.check": "Finding Findings",
    "shmstream.storage.flights": "FlightInfo",
    "shmstream.storage.stock": "Stock StoredBlob",
    "shmstream.store": "Store",
    "shmstream.stream.claims": "sweep",
    "shmstream.stream.control_block": "State",
    "shmstream.stream.reader": "CopierStatistics InFlightCopier",
    "shmstream.stream.subscribers": "Subscriber",
    "shmstream.stream.writer": "BlobStreamer StreamerStatistics",
}
"""Where the public names are."""
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
_WINGS = (
    "cluster",
    "errors",
    "events",
    "flight",
    "sources",
    "storage",
    "store",
    "stream",
    "system",
    "units",
)


def __getattr__(name: str) -> object:
    if name in _WINGS:
        return importlib.import_module(f"shmstream.{name}")
    if (room := _ROOM_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(room), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WINGS})
