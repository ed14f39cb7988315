"""Libraries that read files are given a blob that is still arriving: they get what a file gives.

They take a short `readinto` for the end of the file, or even for data.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import pickle
import tarfile
import time
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import tifffile

from shmstream import Store

NUMBERS = np.random.default_rng(1).random((600, 300))


def drip(data: bytes) -> Iterator[bytes]:
    """A source that gives a little at a time, so that a reader is always ahead of it."""
    for start in range(0, len(data), 40_000):
        time.sleep(0.001)  # as a network does; nothing waits for it
        yield data[start : start + 40_000]


def an_hdf5() -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["x"] = NUMBERS
    return out.getvalue()


def from_hdf5(file: Any) -> object:
    with h5py.File(file, "r") as opened:
        return opened["x"][:].tobytes()


def a_sound() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, NUMBERS[:, :2].repeat(400, axis=0), 48_000, format="WAV")
    return out.getvalue()


def from_sound(file: Any) -> object:
    samples, rate = soundfile.read(file)
    return rate, samples.tobytes()


def a_picture() -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, NUMBERS)
    return out.getvalue()


def a_pickle() -> bytes:
    return pickle.dumps({"a": bytearray(NUMBERS.tobytes()), "b": NUMBERS}, protocol=5)


def from_pickle(file: Any) -> object:
    loaded = pickle.load(file)
    return bytes(loaded["a"]), loaded["b"].tobytes()


def a_table() -> bytes:
    out = io.BytesIO()
    pd.DataFrame(NUMBERS[:, :20], columns=[f"c{each}" for each in range(20)]).to_parquet(out)
    return out.getvalue()


def a_csv() -> bytes:
    return str(pd.DataFrame(NUMBERS[:, :20]).to_csv(index=False)).encode()


def from_csv(file: Any) -> object:
    text = io.TextIOWrapper(file)
    try:
        return list(csv.reader(text))
    finally:
        text.detach()


def from_wave(file: Any) -> object:
    with wave.open(file) as opened:
        return opened.readframes(1 << 30)


def a_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("numbers", NUMBERS.tobytes())
    return out.getvalue()


def a_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        entry = tarfile.TarInfo("numbers")
        entry.size = NUMBERS.nbytes
        archive.addfile(entry, io.BytesIO(NUMBERS.tobytes()))
    return out.getvalue()


def from_tar(file: Any) -> object:
    with tarfile.open(fileobj=file) as archive:
        member = archive.extractfile("numbers")
        assert member is not None
        return member.read()


def buffered(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """The same, through a buffer, which must not close what it reads."""

    def read_buffered(file: Any) -> object:
        reader = io.BufferedReader(file)
        try:
            return read(reader)
        finally:
            reader.detach()

    return read_buffered


LIBRARIES: dict[str, tuple[Callable[[], bytes], Callable[[Any], object]]] = {
    "h5py": (an_hdf5, from_hdf5),
    "h5py, buffered": (an_hdf5, buffered(from_hdf5)),
    "soundfile": (a_sound, from_sound),
    "tifffile": (a_picture, lambda file: tifffile.imread(file).tobytes()),
    "pickle": (a_pickle, from_pickle),
    "pandas, Parquet": (a_table, lambda file: pd.read_parquet(file).to_numpy().tobytes()),
    "pandas, CSV": (a_csv, lambda file: pd.read_csv(file).to_numpy().tobytes()),
    "pyarrow": (a_table, lambda file: pq.read_table(file).to_pandas().to_numpy().tobytes()),
    "zipfile": (a_zip, lambda file: zipfile.ZipFile(file).read("numbers")),
    "tarfile": (a_tar, from_tar),
    "readinto": (a_csv, lambda file: (file.readinto(whole := bytearray(2_000_000)), bytes(whole))),
    "readlines": (a_csv, lambda file: file.readlines()),
    "readlines, some": (a_csv, lambda file: (file.readlines(700), file.tell())),
    "readlines, buffered": (a_csv, buffered(lambda file: file.readlines())),
    "an empty array": (a_csv, lambda file: file.readinto(np.empty((0, 3)))),
    "numpy": (NUMBERS.tobytes, lambda file: np.frombuffer(file.read(), float).tobytes()),
    "numpy, text": (
        a_csv,
        buffered(lambda file: np.loadtxt(file, delimiter=",", skiprows=1).tobytes()),
    ),
    "csv": (a_csv, from_csv),
    "wave": (a_sound, from_wave),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_reads_a_blob_as_it_reads_a_file(
    store: Store, tmp_path: Path, library: str
) -> None:
    make, read = LIBRARIES[library]
    path = tmp_path / "file"
    path.write_bytes(make())
    with path.open("rb", buffering=0) as file:
        right = read(file)
    with store.open("key", drip(path.read_bytes())) as blob:
        assert read(blob) == right
    with store.open("key") as blob:  # complete by now
        assert read(blob) == right


def test_what_needs_a_descriptor_begins_at_the_position(store: Store) -> None:
    path = store.fetch("key", [NUMBERS.tobytes()])
    with store.open("key") as blob:
        blob.seek(800)
        assert np.fromfile(blob, float, 10).tobytes() == NUMBERS.tobytes()[800:880]
        assert blob.tell() == 880
        blob.seek(1_000)
        assert os.read(blob.fileno(), 10) == Path(path).read_bytes()[1_000:1_010]
        assert blob.read(5) == NUMBERS.tobytes()[1_000:1_005]


# Processes that were forked after the blob was opened, as the workers of a data loader are.

ITEM = 3_001
ITEMS = NUMBERS.nbytes // ITEM


def _items_of(blob: Any, worker: int, of: int) -> list[int]:
    """The items that are wrong, of those that are this worker's."""
    right = NUMBERS.tobytes()
    wrong = []
    for item in range(worker, ITEMS, of):
        blob.seek(item * ITEM)
        if blob.read(ITEM) != right[item * ITEM : (item + 1) * ITEM]:
            wrong.append(item)
    return wrong


def _work(blob: Any, worker: int, of: int, answer: Any) -> None:
    answer.send(_items_of(blob, worker, of))


def _wrong_in_forks(blob: Any, workers: int = 4) -> list[list[int]]:
    """What each of some forked workers, and their parent, read wrong at the same time."""
    context = multiprocessing.get_context("fork")
    found, started = [], []
    for worker in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(blob, worker, workers + 1, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    found.append(_items_of(blob, workers, workers + 1))
    for process, ours in started:
        found.append(ours.recv())
        ours.close()
        process.join()
        process.close()
    return found


def test_a_stored_blob_that_was_opened_before_a_fork(store: Store) -> None:
    store.fetch("key", [NUMBERS.tobytes()])
    with store.open("key") as blob:
        blob.read(10)
        assert _wrong_in_forks(blob) == [[]] * 5


def test_a_forked_child_has_a_position_of_its_own_in_the_kernel(store: Store) -> None:
    """Where a library asks for the descriptor, and reads at the kernel's position."""
    data = NUMBERS.tobytes()
    store.fetch("key", [data])
    with store.open("key") as blob:
        descriptor = blob.fileno()
        if (child := os.fork()) == 0:
            is_right = False
            try:
                blob.seek(800)
                is_right = np.fromfile(blob, float, 10).tobytes() == data[800:880]
            finally:
                os._exit(0 if is_right else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert os.read(descriptor, 80) == data[:80]


def test_a_blob_in_flight_that_was_opened_before_a_fork(store: Store) -> None:
    """Each child joins the flight anew, where it stands."""
    with store.open("key", drip(NUMBERS.tobytes())) as blob:
        blob.read(10)
        assert _wrong_in_forks(blob) == [[]] * 5


def test_a_fork_goes_on_where_the_blob_stood(store: Store) -> None:
    data = NUMBERS.tobytes()
    with store.open("key", drip(data)) as blob:
        assert blob.read(1_000) == data[:1_000]
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        if (child := os.fork()) == 0:
            try:
                theirs.send((blob.tell(), blob.read()))
            finally:
                os._exit(0)
        theirs.close()
        position, rest = ours.recv()
        os.waitpid(child, 0)
        ours.close()
        assert (position, rest) == (1_000, data[1_000:])
        assert blob.read() == data[1_000:]
