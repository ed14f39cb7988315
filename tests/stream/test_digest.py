"""Digests: their one spelling; when the bytes of a growing file are hashed."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from shmstream import BlobStreamer, InFlightCopier, State
from shmstream.stream.digest import ALGORITHMS, RunningDigest, check_digest, is_digest
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


def is_accepted(text: str) -> bool:
    try:
        check_digest(text)
    except ValueError:
        return False
    return True


NEARLY = some.builds(
    "{}{}{}{}".format,
    some.sampled_from([*ALGORITHMS, "sha1", "md5", "SHA256", " sha256", ""]),
    some.sampled_from([":", "", "::", "-", ": "]),
    some.sampled_from([0, 1, 63, 64, 65, 127, 128, 129]).flatmap(
        lambda length: some.text("0123456789abcdef", min_size=length, max_size=length)
    ),
    some.sampled_from(["", "\n", " ", "\0", "g", "A", "\N{ARABIC-INDIC DIGIT ONE}"]),
)


@settings(deadline=None, max_examples=500)
@given(text=some.text() | NEARLY)
@example(text="sha256:" + "0" * 64 + "\n")
def test_any_text_is_a_digest_in_its_one_spelling_or_refused(text: str) -> None:
    algorithm, colon, digits = text.partition(":")
    is_one = (
        algorithm in ("sha256", "sha512")
        and colon == ":"
        and len(digits) == 2 * hashlib.new(algorithm).digest_size
        and set(digits) <= set("0123456789abcdef")
    )
    assert is_digest(text) == is_one
    assert is_accepted(text) == (is_one or text in ("sha256", "sha512"))


@settings(deadline=None)
@given(algorithm=some.sampled_from([*ALGORITHMS]), data=some.binary(), place=some.integers(0, 63))
def test_every_digest_is_accepted_and_no_other_spelling_of_it(
    algorithm: str, data: bytes, place: int
) -> None:
    digits = hashlib.new(algorithm, data).hexdigest()
    assert is_digest(f"{algorithm}:{digits}")
    assert is_accepted(f"{algorithm}:{digits}")
    for other in (digits[:place] + digits[place + 1 :], digits[:place] + "A" + digits[place + 1 :]):
        assert not is_digest(f"{algorithm}:{other}")
        assert not is_accepted(f"{algorithm}:{other}")
