"""`rm`, `pin`, `unpin`, `cancel`, `fetch --link`, and `gc` where there is no store."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shmstream import Store
from tests.cli.conftest import BLOB, DIGEST, SIZE, Run
from tests.support.commands import Running
from tests.support.interpreters import wait_until


def test_a_blob_is_removed(run: Run, url: str, store: Store) -> None:
    for digest in ([], ["--digest", DIGEST]):
        assert run("fetch", "-q", url, *digest)[0] == 0
    assert run("rm", DIGEST.upper(), url) == (0, "", f"{DIGEST.upper()}: removed\n{url}: removed\n")
    assert store.blobs() == []
    code, _, told = run("rm", DIGEST)
    assert (code, told) == (1, f"{DIGEST} is not in {store.folder}\n")
    assert run("rm", "sha256:12")[0] == 2
    assert run("rm")[0] == 2


def test_a_path_is_the_key_of_its_file(run: Run, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BLOB)
    assert run("fetch", "-q", "file")[0] == 0
    assert run("rm", "file") == (0, "", f"{tmp_path / 'file'}: removed\n")
    assert store.blobs() == []


def test_a_pinned_blob_stays(run: Run, url: str, store: Store) -> None:
    assert run("pin", DIGEST, "another key")[0] == 0
    assert run("fetch", "-q", url, "--digest", DIGEST)[0] == 0
    assert run("evict", "--max-bytes", "0")[1] == ""
    assert re.search(rf"  \*    {DIGEST}  ", run("ls")[1])
    assert run("check")[0] == 0
    assert run("unpin", DIGEST) == (0, "", f"{DIGEST}: no longer pinned\n")
    assert run("unpin", DIGEST)[0] == 1
    assert run("evict", "--max-bytes", "0")[1] == f"{store.path(DIGEST)}\n"
    assert run("unpin", "another key")[0] == 0


def test_a_flight_is_cancelled(run: Run, flight: tuple[Running, Running], store: Store) -> None:
    assert run("cancel", DIGEST) == (0, "", f"{DIGEST}: cancelled\n")
    for each in flight:
        code, _, told = each.finish()
        assert code == 1
        assert "it was cancelled" in told
    assert not store.is_in_flight(DIGEST)
    code, _, told = run("cancel", DIGEST)
    assert (code, told) == (1, f"{DIGEST} is not in flight in {store.folder}\n")


def test_a_file_that_shares_the_bytes(run: Run, url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    for _ in range(2):
        assert run("fetch", "-q", url, "--digest", DIGEST, "-o", "file", "--link") == (0, "", "")
        assert (tmp_path / "file").read_bytes() == BLOB
    blocks = os.stat(tmp_path / "file").st_blocks
    assert os.path.samefile(tmp_path / "file", store.path(DIGEST)) or blocks * 512 >= SIZE
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "store"]
    assert run("fetch", url, "--link")[0] == 2
    assert run("fetch", url, "--link", "-o", "-")[0] == 2
    code, _, told = run("fetch", "-q", url, "--digest", DIGEST, "--link", "-o", "store")
    assert (code, "store" in told) == (2, True)
    code, _, told = run("fetch", "-q", url, "--digest", DIGEST, "--link", "-o", "none/file")
    assert code == 1
    assert "cannot write to 'none/file': No such file" in told


def test_shared_memory_without_a_store(
    run: Run, flight: tuple[Running, Running], tmp_path: Path
) -> None:
    for each in flight:
        each.process.kill()
        each.process.wait()
    nowhere = tmp_path / "nowhere"
    code, out, told = run("gc", "--store", str(nowhere))
    assert code == 0
    assert out.strip()
    assert told.endswith(f"removed from shared memory; no store in {nowhere}\n")
    assert not nowhere.exists()


@pytest.mark.parametrize("how", ["", "~"])
def test_the_default_store(how: str, run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["SHMSTREAM_STORE"]).parent / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SHMSTREAM_STORE", "~/blobs" if how else "")
    folder = home / ("blobs" if how else ".cache/shmstream")
    assert run("fetch", "-q", url, "--digest", DIGEST)[1].startswith(str(folder))
    wait_until(lambda: DIGEST in Store(folder))
    assert Store().folder == str(folder)
