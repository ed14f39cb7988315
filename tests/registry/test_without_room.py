"""A store without room for a blob: what its clients take comes from the upstream, and no more."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shmstream.sources.origin import Request
from tests.registry.test_registry_faults import serve_manifest
from tests.support import registries
from tests.support.containerd import Containerd
from tests.support.images import OCI_MANIFEST, digest_of, image
from tests.support.origin import Origin
from tests.support.registries import Registry, succeeds
from tests.support.roles import content
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 20 * MIB + 4321
PIECE = 2 * MIB
KEY = digest(600, SIZE)
DATA = content(600, SIZE)
THERE = f"/v2/large/app/blobs/{KEY}"


@pytest.fixture
def small(run_registry: registries.Run, origin: Origin) -> Registry:
    """A registry with two workers, and room for little."""
    origin.serve(THERE, seed=600, size=SIZE)
    return run_registry(origin.url(""), workers=2, max_bytes="1MiB")


def logged(ours: Registry, count: int, there: str = THERE) -> list[dict[str, Any]]:
    """The lines of its access log that are about ranges of a blob, once there are so many."""

    def of_ranges(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in lines if each["path"] == there and "range" in each]

    return of_ranges(ours.serving.accesses(lambda lines: len(of_ranges(lines)) == count))


def given_by(origin: Origin, there: str = THERE, first: int = 0) -> list[Request]:
    """The requests for a blob from `first` on, once all are over: then what was sent is counted."""
    return origin.wait(there, lambda asked: all(each.over for each in asked))[first:]


def take(ours: Registry, wanted: str, count: int) -> bytes:
    """Ask for a range, take so many bytes of it, and hang up."""
    connection, response = ours.open(THERE, Range=wanted)
    assert response.status == 206
    assert response.headers["content-range"].endswith(f"/{SIZE}")
    taken = response.read(count)
    connection.close()
    return taken


@pytest.mark.parametrize(("clients", "workers", "most"), [(1, 1, 1.1), (3, 2, 2.0)])
def test_open_ranges_and_hang_ups(
    run_registry: registries.Run, origin: Origin, clients: int, workers: int, most: float
) -> None:
    """containerd 2 gets a layer so: several clients at once, a piece for each request.

    With one worker, which has one client at a time, the upstream is asked for hardly more than is
    given. With two workers, it is chance which ranges a worker sees first. If these begin at 4 and
    8 MiB, it believes that clients take 4 MiB, until it sees another one.
    """
    origin.serve(THERE, seed=600, size=SIZE)
    small = run_registry(origin.url(""), workers=workers, max_bytes="1MiB")
    starts = range(0, SIZE, PIECE)
    with ThreadPoolExecutor(clients) as all_clients:
        taken = all_clients.map(lambda start: take(small, f"bytes={start}-", PIECE), starts)
        assert b"".join(taken) == DATA
    # On a busy machine a client hangs up late, and is given more than it reads.
    given = sum(each["bytes"] for each in logged(small, len(starts)))
    asked = given_by(origin)
    sent = [(each.method, each.range, each.sent) for each in asked]
    assert sum(each.sent for each in asked) <= most * max(given, SIZE), (given, sent)
    assert [key for key, _ in small.store.blobs()] == []
    lines = [line for line in small.serving.log.splitlines() if " WARNING " in line]
    assert len(lines) <= workers, "one of each worker"


@pytest.mark.parametrize("room", ["1MiB", "1GiB"])
def test_containerd_2_pulls_in_parts(
    run_registry: registries.Run, origin: Origin, room: str
) -> None:
    """The real one: three parts at a time, each asked for without an end."""
    what = image(601, [SIZE])
    serve_manifest(origin, "large/app", "v1", what.manifest.decode(), OCI_MANIFEST)
    config, layer = what.blobs
    origin.serve(f"/v2/large/app/blobs/{digest_of(config)}", text=config.decode())
    [name] = what.layers
    there = f"/v2/large/app/blobs/{name}"
    ours = run_registry({"named.test": origin.url("")}, workers=2, max_bytes=room)
    with tempfile.TemporaryDirectory() as folder:  # sockets need a short path
        (Path(folder) / "layer").write_bytes(layer)
        origin.serve(there, file=f"{folder}/layer")
        mirrors = {"named.test": ours.host}
        with closing(Containerd(folder, mirrors, newer=True, part=PIECE)) as containerd:
            succeeds(containerd.pulling("named.test/large/app:v1"))
            assert containerd.has(name)
    starts = range(0, len(layer), PIECE)
    lines = logged(ours, len(starts), there)
    assert {each["range"] for each in lines} == {f"bytes={start}-" for start in starts}
    sent = [(each.range, each.sent) for each in given_by(origin, there) if each.method == "GET"]
    if room == "1GiB":
        assert sent == [(None, len(layer))], "one download"
    else:
        # On a busy machine the client hangs up late; without a bound it was twelve times the layer.
        assert sum(count for _, count in sent) <= 2 * len(layer), sent


@pytest.mark.parametrize("room", ["1KiB", "5MiB"])
def test_a_whole_blob_comes_once(run_registry: registries.Run, origin: Origin, room: str) -> None:
    """Nothing lies in the buffers of a connection that was given up for want of room."""
    size = 6_000_000
    key, data = digest(602, size), content(602, size)
    there = f"/v2/large/app/blobs/{key}"
    origin.serve(there, seed=602, size=size)
    ours = run_registry(origin.url(""), workers=2, max_bytes=room)
    assert ours.get(there).body == data
    asked = [each for each in given_by(origin, there) if each.method == "GET"]
    assert sum(each.sent for each in asked) == size


def test_ranges(small: Registry, origin: Origin) -> None:
    """Clients that mount an image ask for many small ranges; others go on with what they have.

    The pieces grow, so a client that wants everything does not cost a request for each.
    """
    spans = [(start, start + 10_000) for start in range(0, 20 * MIB, MIB)]
    for start, end in spans:
        assert take(small, f"bytes={start}-{end - 1}", 20_000) == DATA[start:end]
    assert take(small, "bytes=-5000", 20_000) == DATA[-5000:]
    asked = [each for each in given_by(origin) if each.method == "GET"]
    assert [each.range for each in asked][:-1] == [
        f"bytes={start}-{end - 1}" for start, end in spans
    ]
    assert sum(each.sent for each in asked) == 10_000 * len(spans) + 5000
    assert all(each["complete"] for each in logged(small, len(spans) + 1))

    for start in (0, 1, 12 * MIB):
        before = len(origin.requests(THERE))
        assert small.get(THERE, Range=f"bytes={start}-").body == DATA[start:]
        asked = given_by(origin, first=before)
        assert sum(each.sent for each in asked) == SIZE - start
        assert len(asked) < 80
    origin.change(THERE, first=len(origin.requests(THERE)) + 2, count=1, reset_after=50_000)
    assert small.get(THERE, Range="bytes=1000-").body == DATA[1000:]
    origin.change(THERE, ranges=False)
    assert small.get(THERE, Range=f"bytes={12 * MIB}-").body == DATA[12 * MIB :]
    assert small.get(THERE).body == DATA
