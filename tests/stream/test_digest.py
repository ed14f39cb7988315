"""Digests: those of a registry; when the bytes of a growing file are hashed."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream import BlobStreamer, DigestMismatch, InFlightCopier, State
from shmstream.stream.digest import (
    RunningDigest,
    digest_or_algorithm,
    is_digest,
    require_digest,
)
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
        assert go_on.wait(60)
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
            assert streamer._digest is not None
            assert streamer._digest._thread is None
        streamer.commit()
        assert streamer.digest == f"sha256:{roles.sha256(data)}"


NEARLY = some.builds(
    "{}{}{}{}".format,
    some.sampled_from(["sha256", "sha512", "sha1", "md5", "SHA256", " sha256", ""]),
    some.sampled_from([":", "", "::", "-", ": "]),
    some.sampled_from([0, 1, 63, 64, 65, 127, 128, 129]).flatmap(
        lambda length: some.text("0123456789abcdef", min_size=length, max_size=length)
    ),
    some.sampled_from(["", "\n", " ", "\0", "g", "A", "\N{ARABIC-INDIC DIGIT ONE}"]),
)


@pytest.mark.parametrize("more", [b"", b"more"])
def test_what_a_dead_writer_has_left_is_hashed_with_what_comes(tmp_path: Path, more: bytes) -> None:
    """Until then no thread takes the processor from the takeover."""
    data = content(3, 3 << 20)
    path = tmp_path / "file"
    path.write_bytes(data + more)
    before = live_threads()
    with path.open("rb") as file:
        expected = f"sha256:{hashlib.sha256(data + more).hexdigest()}"
        digest = RunningDigest(expected, file.fileno(), len(data))
        assert live_threads() == before
        if more:
            digest.update(len(more))
            wait_until(lambda: digest.covered == len(data) + len(more))
        assert digest.finish() == expected


@settings(deadline=None, max_examples=500)
@given(text=some.text() | NEARLY)
@example(text="sha256:" + "0" * 64 + "\n")
def test_a_registry_knows_one_spelling(text: str) -> None:
    algorithm, colon, digits = text.partition(":")
    is_one = (
        algorithm in ("sha256", "sha512")
        and colon == ":"
        and len(digits) == 2 * hashlib.new(algorithm).digest_size
        and set(digits) <= set("0123456789abcdef")
    )
    assert is_digest(text) == is_one
    if is_one:
        assert require_digest(text) == text


def test_what_a_writer_takes_for_a_digest(blob: str) -> None:
    assert digest_or_algorithm("md5") == "md5"
    assert digest_or_algorithm("0" * 64) == "sha256:" + "0" * 64
    for wrong in ("", "a name", "sha256:00", "0" * 40, " sha256", None):
        with pytest.raises(ValueError, match="digest"):
            digest_or_algorithm(wrong)  # type: ignore[arg-type]
    data = content(1, 100_000)
    with BlobStreamer.create(blob, digest=f"SHA1:{hashlib.sha1(data).hexdigest()}") as streamer:
        streamer.append(data)
        streamer.commit()
    with BlobStreamer.create(blob, digest=f"md5-{hashlib.md5(data).hexdigest()}") as streamer:
        streamer.append(data[:-1])
        with pytest.raises(DigestMismatch):
            streamer.commit()
