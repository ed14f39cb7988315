"""Blobs and flights as JSON objects, for programs."""

from __future__ import annotations

from typing import Any

from shmstream.cli.formatting import utc
from shmstream.registry.images import Image
from shmstream.storage.flights import FlightInfo, followers_of, state_of
from shmstream.storage.stock import StoredBlob


def blob_facts(blob: StoredBlob) -> dict[str, Any]:
    """A complete blob: its size in bytes, the time of its last use in UTC, where it came from."""
    return {
        "key": blob.key,
        "size": blob.size,
        "last_used": utc(blob.used),
        "source": blob.source,
        "pinned": blob.is_pinned,
        "path": blob.path,
    }


def image_facts(image: Image, blobs: int, size: int) -> dict[str, Any]:
    """An image: how many of its blobs are here, and their bytes; times in UTC."""
    return {
        "image": str(image),
        "name": image.name,
        "reference": image.reference,
        "digest": image.digest,
        "blobs": blobs,
        "size": size,
        "since": utc(image.since),
        "last_used": utc(image.used),
    }


def flight_facts(flight: FlightInfo) -> dict[str, Any]:
    """A flight: its leader, its followers, and how far each of them is, in bytes."""
    leader = flight.leader
    return {
        "key": flight.key,
        "state": state_of(flight),
        "size": flight.size,
        "published": flight.published,
        "epoch": flight.epoch,
        "leader": None if leader is None else {"pid": leader.pid, "process": str(leader)},
        "followers": [
            {
                "pid": each.identity.pid,
                "process": str(each.identity),
                "position": each.position,
                "lag": each.lag,
            }
            for each in followers_of(flight)
        ],
        "path": flight.path,
        "stream": flight.stream,
    }
