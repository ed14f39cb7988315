"""Random interleavings against a plain model, and a stress of real processes with kills.

Both are seeded, and name the seed when they fail: `SHMSTREAM_SEED=123 make test
TESTS=tests/hazards/test_model.py` runs that one again. `SHMSTREAM_MODEL_RUNS` and
`SHMSTREAM_STRESS_SECONDS` make them longer.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmstream import InFlightCopier, StreamBroken, sweep
from shmstream.stream import segment
from tests.support import roles
from tests.support.interpreters import Interpreter

Start = Callable[..., Interpreter]

SEED = os.environ.get("SHMSTREAM_SEED")
RUNS = int(os.environ.get("SHMSTREAM_MODEL_RUNS", "12"))
SECONDS = float(os.environ.get("SHMSTREAM_STRESS_SECONDS", "10"))


@contextmanager
def naming(seed: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"with SHMSTREAM_SEED={seed}: {error}") from error


class Model:
    """One stream with its writer and readers, beside the bytes that it should have."""

    def __init__(self, start: Start, blob: str, chance: random.Random) -> None:
        self.start, self.blob, self.chance = start, blob, chance
        self.bytes = b""
        self.size = chance.randrange(20_000, 400_000)
        self.chunk_size = chance.choice((1, 5, 1000, 65536))
        self.content = roles.content(chance.randrange(1 << 30), self.size)
        self.digest = hashlib.sha256(self.content).hexdigest() if chance.random() < 0.5 else None
        self.corrupt = self.digest is not None and chance.random() < 0.3
        options: dict[str, object] = {
            "publish_interval": 0, "chunk_size": self.chunk_size, "max_subscribers": 6,
        }  # fmt: skip
        if self.digest:
            options["digest"] = f"sha256:{self.digest}"
        self.knows_size = chance.random() < 0.5
        if self.knows_size:
            options["size"] = self.size
        self.writer = start(roles.write, blob, options)
        self.name = self.writer.hear()
        self.local: list[InFlightCopier] = []
        self.remote: dict[Interpreter, tuple[int, bytes | None]] = {}  # position, awaited bytes

    @property
    def published(self) -> int:
        """The bytes that must be readable now: with a digest, all but the last chunk (I5)."""
        if self.digest is None:
            return len(self.bytes)
        end = self.size if self.knows_size else len(self.bytes)
        return min(len(self.bytes), max(end - 1, 0) // self.chunk_size * self.chunk_size)

    def tell(self, *order: object) -> None:
        self.writer.say(order)
        assert self.writer.hear() == order[0]

    def append(self) -> None:
        piece = self.content[len(self.bytes) :][: self.chance.choice((0, 1, 4, 5, 6, 999, 70_000))]
        if self.corrupt and len(self.bytes) + len(piece) == self.size and piece:
            piece = piece[:-1] + bytes([piece[-1] ^ 1])
        self.tell("append_hex", piece.hex())
        self.bytes += piece
        for reader, (position, awaited) in list(self.remote.items()):
            if awaited is not None and position + len(awaited) <= self.published:
                assert bytes.fromhex(reader.hear()) == awaited
                self.remote[reader] = (position + len(awaited), None)

    def join(self) -> None:
        while len(self.local) + len(self.remote) == 6:
            self.leave()
        if self.chance.random() < 0.6:
            self.local.append(InFlightCopier.attach(self.name))
        else:
            reader = self.start(roles.read_steps, self.name, {})
            assert reader.hear() == "attached"
            self.remote[reader] = (0, None)

    def leave(self) -> None:
        number = self.chance.randrange(len(self.local) + len(self.remote) + 1)
        if number < len(self.local):
            self.local.pop(number).close()
        elif self.remote:
            reader = self.chance.choice(list(self.remote))
            if self.remote.pop(reader)[1] is None and self.chance.random() < 0.5:
                reader.say(["close"])
                assert reader.hear() == "close"
                reader.finish()
            else:
                reader.kill()

    def read(self) -> None:
        for copier in self.local:
            where = copier.tell()
            assert copier.published == self.published
            assert copier.chunk_count == self.published // self.chunk_size + (
                self.knows_size and self.published == self.size and self.size % self.chunk_size > 0
            )
            most = self.published - where
            if most > 0:
                count = self.chance.randint(1, most)
                got = copier.read(count) if self.chance.random() < 0.5 else copier.read1(count)
                assert got == self.bytes[where : where + len(got)]
                assert got
        for reader, (position, awaited) in list(self.remote.items()):
            if awaited is None:
                count = self.chance.choice((1, 1000, 100_000))
                expected = self.content[position : position + count]
                if len(expected) < count or (self.digest and position + count > self.published):
                    continue
                reader.say(["read", count])
                if position + count <= self.published:
                    assert bytes.fromhex(reader.hear()) == expected
                    self.remote[reader] = (position + count, None)
                else:
                    self.remote[reader] = (position, expected)

    def seek(self) -> None:
        for copier in self.local:
            assert copier.seek(self.chance.randint(0, len(self.bytes))) == copier.tell()
        for reader, (_, awaited) in list(self.remote.items()):
            if awaited is None:
                where = self.chance.randint(0, len(self.bytes))
                reader.say(["seek", where])
                assert reader.hear() == where
                self.remote[reader] = (where, None)

    def run(self) -> None:
        steps = [self.append] * 6 + [self.read] * 4 + [self.join] * 2 + [self.leave, self.seek]
        while len(self.bytes) < self.size and self.chance.random() > 0.005:
            self.chance.choice(steps)()
        self.end()

    def end(self) -> None:
        """Commit, abort or kill; then every reader reads on to the end that it must find."""
        complete = len(self.bytes) == self.size
        endings = ["abort", "kill"] + ["commit"] * 3 * (complete or not self.knows_size)
        ending = self.chance.choice(endings)
        if ending == "kill":
            self.writer.kill()
            error = "WriterDied"
        elif ending == "abort":
            self.tell("abort", "because")
            error = "BlobAborted"
        else:
            self.writer.say(["commit"])
            error = self.writer.hear()
            right = self.digest is None or (complete and not self.corrupt)
            assert error == ("commit" if right else "DigestMismatch")
        readable = self.bytes if error == "commit" else self.bytes[: self.published]
        for copier in self.local:
            rest = readable[copier.tell() :]
            if rest:
                assert copier.read(len(rest)) == rest
            if error == "commit":
                assert copier.read1() == b""
            else:
                with pytest.raises(StreamBroken) as caught:
                    copier.read1()
                assert type(caught.value).__name__ == error
            copier.close()
        for reader, (position, awaited) in self.remote.items():
            if awaited is None:
                reader.say(["read", self.size + 1])
            outcome = reader.hear()
            if outcome == "" or not isinstance(outcome, str):
                assert position >= len(readable)
            else:
                assert bytes.fromhex(outcome) == readable[position:][: len(awaited or readable)]
            if isinstance(outcome, dict):
                assert outcome["error"] == error
            reader.kill()
        assert Path(self.blob).exists() == (error == "commit")
        if error == "commit":
            assert Path(self.blob).read_bytes() == self.bytes
        if ending == "kill":
            assert sweep() == [self.name]
        else:
            self.tell("close")


@pytest.mark.parametrize("run", [int(SEED)] if SEED else range(RUNS))
def test_model(run: int, start: Start, blob: str) -> None:
    with naming(run):
        Model(start, blob, random.Random(run)).run()


@pytest.mark.timeout(SECONDS + 110)
def test_stress(start: Start, tmp_path: Path) -> None:
    """Blob after blob, with readers and writers killed at random.

    Two oracles that know nothing of each other: the SHA-256 of what each reader got, and that
    everything each reader ever saw only grew.
    """
    seed = int(SEED) if SEED else random.SystemRandom().randrange(1 << 30)
    with naming(seed):
        chance = random.Random(seed)
        writer = start(roles.stress_writer)
        readers = [start(roles.stress_reader) for _ in range(4)]
        deadline = time.monotonic() + SECONDS
        rounds = kills = 0
        while time.monotonic() < deadline:
            rounds += 1
            name, path = f"stress-{rounds}", str(tmp_path / "blob")
            blob_seed = chance.randrange(1 << 30)
            victim = chance.choice([writer, *readers]) if chance.random() < 0.4 else None
            for reader in readers:
                reader.say([name, chance.randrange(1 << 30)])
            writer.say([path, name, blob_seed])
            expected = writer.hear()
            if victim is not None:
                kills += 1
                victim.kill()
                victim.close()
            for index, reader in enumerate(readers):
                if reader is victim:
                    readers[index] = start(roles.stress_reader)
                    continue
                outcome = reader.hear()
                assert outcome["shrunk"] == []
                if outcome["error"] is None:
                    assert outcome["sha256"] == expected
                else:
                    assert victim is writer
                    assert outcome["error"] in ("WriterDied", "StreamNotFound")
            if victim is writer:
                writer = start(roles.stress_writer)
            else:
                writer.say("all have read")
                assert writer.hear() == "closed"
        for process in (writer, *readers):
            process.kill()
        sweep()
        assert segment.names() == []
        for left in tmp_path.glob("blob*"):
            left.unlink()
        print(f"{rounds} blobs, {kills} kills, seed {seed}")
