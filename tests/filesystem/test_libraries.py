"""Libraries that use fsspec read through `shmstream::` what they read from the disk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shmstream import Store
from shmstream.filesystem import ShmstreamFileSystem
from tests.support.filesystems import Rows, begin, item, read_arrays, read_data_sets
from tests.support.folder_server import serving
from tests.support.interpreters import Interpreter
from tests.support.origin import Origin

NUMBERS = np.random.default_rng(1).random((2_000, 20))
TABLE = pd.DataFrame(NUMBERS, columns=[f"c{each}" for each in range(20)])


@pytest.fixture(scope="session")
def library_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("library")
    TABLE.to_csv(folder / "table.csv", index=False)
    TABLE.to_csv(folder / "table.csv.gz", index=False)
    TABLE.to_parquet(folder / "table.parquet", row_group_size=500)
    with h5py.File(folder / "table.h5", "w") as file:
        file["numbers"] = NUMBERS
    Image.fromarray((NUMBERS * 255).astype(np.uint8)).save(folder / "picture.png")
    (folder / "numbers").write_bytes(NUMBERS.tobytes())
    return folder


@pytest.fixture(scope="session")
def library_server(library_files: Path) -> Iterator[str]:
    with serving(library_files) as url:
        yield url


@pytest.fixture
def url(library_server: str) -> str:
    return f"shmstream::{library_server}"


@pytest.fixture
def system(url: str, options: dict[str, Any]) -> ShmstreamFileSystem:
    found = fsspec.url_to_fs(url, **options)[0]
    assert isinstance(found, ShmstreamFileSystem)
    return found


def test_pandas(url: str, options: dict[str, Any]) -> None:
    for name, compression in (("table.csv", None), ("table.csv.gz", "gzip")):
        pd.testing.assert_frame_equal(
            pd.read_csv(f"{url}/{name}", storage_options=options, compression=compression), TABLE
        )
    pd.testing.assert_frame_equal(
        pd.read_parquet(f"{url}/table.parquet", storage_options=options), TABLE
    )
    chunks = pd.read_csv(f"{url}/table.csv", storage_options=options, chunksize=700)
    assert [len(chunk) for chunk in chunks] == [700, 700, 600]


def test_pyarrow(url: str, system: ShmstreamFileSystem) -> None:
    path = f"{url}/table.parquet"
    table = pq.read_table(path, filesystem=system, columns=["c1"])
    assert table.column("c1").to_pylist() == TABLE["c1"].to_list()
    assert pq.ParquetFile(path, filesystem=system).num_row_groups == 4
    dataset = pyarrow.dataset.dataset([path], filesystem=system, format="parquet")
    found = dataset.to_table(filter=pyarrow.dataset.field("c0") > 0.5)
    assert len(found) == (TABLE["c0"] > 0.5).sum()
    with system.open(path) as file:
        assert pq.read_table(file).num_rows == len(TABLE)


def test_h5py(system: ShmstreamFileSystem, url: str) -> None:
    with system.open(f"{url}/table.h5") as file, h5py.File(file, "r") as opened:
        assert (opened["numbers"][:] == NUMBERS).all()


def test_pillow(system: ShmstreamFileSystem, url: str) -> None:
    with system.open(f"{url}/picture.png") as file, Image.open(file) as image:
        assert image.size == (20, 2_000)
        assert image.getpixel((3, 7)) == int(NUMBERS[7, 3] * 255)


def test_safetensors(
    system: ShmstreamFileSystem, url: str, library_files: Path, options: dict[str, Any]
) -> None:
    """Its files are mapped, so it needs a path: `fsspec.open_local`."""
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"numbers": NUMBERS}, library_files / "model.safetensors")
    with system.open(f"{url}/model.safetensors") as file:
        assert (numpy.load(file.read())["numbers"] == NUMBERS).all()
    path = fsspec.open_local(f"{url}/model.safetensors", **options)
    with pytest.importorskip("safetensors").safe_open(path, "np") as opened:
        assert (opened.get_slice("numbers")[10:12] == NUMBERS[10:12]).all()


def test_zarr_and_xarray(
    url: str, library_files: Path, options: dict[str, Any], start: Callable[..., Interpreter]
) -> None:
    """In a process of its own, because zarr leaves threads behind."""
    pytest.importorskip("zarr")
    pytest.importorskip("xarray")
    np.save(library_files / "numbers.npy", NUMBERS)
    reader = start(read_arrays, f"{url}/data.zarr", str(library_files), options)
    assert reader.hear() == [NUMBERS[400:700].sum(), NUMBERS[1_000:].sum()]
    reader.finish()


def test_datasets(
    url: str,
    options: dict[str, Any],
    start: Callable[..., Interpreter],
    origin: Origin,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a process of its own: where its cache is, it reads when it is imported."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = start(read_data_sets, url, options, fresh=True)
    assert [reader.hear(), reader.hear()] == [len(TABLE)] * 2
    assert len(store.blobs()) == 2
    text = "name,value\n" + "row,7\n" * 500_000
    reader.say(f"shmstream::{origin.serve('/stream.csv', text=text)}")
    origin.change("/stream.csv", stall_after=1_000_000)
    assert reader.hear() == {"name": "row", "value": 7}
    origin.release()
    reader.finish()


def test_dask(url: str, options: dict[str, Any], store: Store) -> None:
    dask_bytes = pytest.importorskip("dask.bytes")
    dataframe = pytest.importorskip("dask.dataframe")
    _, blocks = dask_bytes.read_bytes(f"{url}/table.csv", blocksize=100_000, **options)
    assert len(blocks[0]) > 5
    frame = dataframe.read_parquet(f"{url}/table.parquet", storage_options=options)
    assert frame["c3"].sum().compute(scheduler="synchronous") == pytest.approx(TABLE["c3"].sum())
    with pytest.importorskip("dask").config.set(scheduler="synchronous"):
        assert len(dataframe.read_parquet(f"{url}/table.parquet", storage_options=options)) == 2_000
    frame = dataframe.read_csv(f"{url}/table.csv", blocksize=100_000, storage_options=options)
    assert len(frame.compute(scheduler="synchronous")) == len(TABLE)
    assert len(store.blobs()) == 2


@pytest.mark.parametrize("how", ["spawn", "fork", "forkserver"])
def test_a_data_loader(system: ShmstreamFileSystem, url: str, store: Store, how: str) -> None:
    """The file is opened before the workers begin: they inherit it, or unpickle it."""
    context = multiprocessing.get_context(how)
    with system.open(f"{url}/numbers") as file:
        file.read(1)
        with context.Pool(3, begin, (Rows(file),)) as pool:
            items = pool.map(item, range(2_000), chunksize=50)
            pool.close()
            pool.join()
    assert b"".join(items) == NUMBERS.tobytes()
    assert len(store.blobs()) == 1
