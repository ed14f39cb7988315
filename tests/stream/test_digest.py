"""The running digest: who waits for it, and when bytes are hashed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shmstream import BlobStreamer, InFlightCopier, State
from shmstream.stream.digest import RunningDigest
from tests.support import roles
from tests.support.interpreters import live_threads, wait_until
from tests.support.roles import content


def test_nobody_waits_for_a_digest_that_decides_nothing(
    blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(1, 3 << 20)
    go_on = threading.Event()
    finish = RunningDigest.finish

    def finish_later(self: RunningDigest) -> str:
        assert go_on.wait(20)
        return finish(self)

    monkeypatch.setattr(RunningDigest, "finish", finish_later)
    with BlobStreamer.create(blob, digest="sha256") as streamer:
        with InFlightCopier.attach(streamer.name) as copier:
            streamer.append(data)
            committing = threading.Thread(target=streamer.commit)
            committing.start()
            assert copier.read() == data
            assert copier.state == State.COMMITTED
        assert streamer.digest is None
        assert (committing.is_alive(), Path(blob).read_bytes()) == (True, data)
        go_on.set()
        committing.join()
        assert streamer.digest == f"sha256:{roles.sha256(data)}"


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("long", [0.0, 1e6])
def test_what_takes_long_is_hashed_meanwhile(
    given: bool, long: float, blob: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(1, 3 << 20)
    digest = f"sha256:{roles.sha256(data)}" if given else "sha256"
    monkeypatch.setattr("shmstream.stream.digest._LONG", long)
    with BlobStreamer.create(blob, digest=digest) as streamer:
        streamer.append(data)
        if given or not long:
            wait_until(lambda: "shmstream-digest" in live_threads())
        else:
            assert "shmstream-digest" not in live_threads()
        streamer.commit()
        assert streamer.digest == f"sha256:{roles.sha256(data)}"
