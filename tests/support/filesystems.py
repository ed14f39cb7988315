"""What interpreters do in the tests of `shmstream::`, each in a process of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import fsspec

from shmstream import ShmstreamError
from shmstream.filesystem import ShmstreamFileSystem
from tests.support.interpreters import Link


def register() -> None:
    """Make `shmstream::` known to fsspec, as the entry point of an installed package does."""
    fsspec.register_implementation("shmstream", ShmstreamFileSystem, clobber=True)


def read_url(link: Link, url: str, options: dict[str, Any]) -> None:
    """Read a file to its end: says the first line, then the outcome. Reads on at the word."""
    register()
    link.hear()
    read = hashlib.sha256()
    try:
        with fsspec.open(url, "rb", **options) as file:
            first = file.readline()
            read.update(first)
            link.say([first.decode("latin-1"), file.blob.role])
            for line in file:
                read.update(line)
    except (ShmstreamError, OSError) as error:
        link.say([type(error).__name__, str(error)])
    else:
        link.say(["read", read.hexdigest()])


def read_arrays(link: Link, url: str, folder: str, options: dict[str, Any]) -> None:
    """Write `numbers.npy` of the folder there as zarr; say sums of what zarr and xarray read."""
    import numpy as np
    import xarray
    import zarr

    register()
    numbers = np.load(f"{folder}/numbers.npy")
    data = xarray.Dataset({"numbers": (("row", "column"), numbers)})
    encoding = {"numbers": {"chunks": (500, 20)}}
    data.to_zarr(f"{folder}/data.zarr", mode="w", consolidated=False, encoding=encoding)
    array = zarr.open_array(f"{url}/numbers", mode="r", storage_options=options)
    some = float(np.asarray(array[400:700]).sum())
    with xarray.open_zarr(url, storage_options=options, chunks=None, consolidated=False) as opened:
        link.say([some, float(opened["numbers"][1_000:].values.sum())])


def read_data_sets(link: Link, url: str, options: dict[str, Any]) -> None:
    """Say the rows that `datasets` reads out of `table.csv` and `table.parquet`, and its first row
    of `stream.csv`, when the rest has not arrived.
    """
    import datasets
    import pandas

    register()
    for kind in ("csv", "parquet"):
        path = fsspec.open_local(f"{url}/table.{kind}", **options)
        link.say(datasets.load_dataset(kind, data_files=path, split="train").num_rows)

    def rows(url: str) -> Iterator[dict[str, Any]]:
        for chunk in pandas.read_csv(url, storage_options=options, chunksize=1):
            yield from chunk.to_dict("records")

    link.say(
        next(iter(datasets.IterableDataset.from_generator(rows, gen_kwargs={"url": link.hear()})))
    )


# The workers of a data loader.


class Rows:
    """A data set, as those of torch: its items are read in worker processes."""

    size = 160  # bytes of an item

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getitem__(self, index: int) -> bytes:
        self.file.seek(index * self.size)
        data: bytes = self.file.read(self.size)
        return data


def begin(rows: Rows) -> None:
    """What each worker does first."""
    global _rows
    register()
    _rows = rows


def item(index: int) -> bytes:
    return _rows[index]


_rows: Rows
