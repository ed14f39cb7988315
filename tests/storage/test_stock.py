"""What a store has: counted, weighed, and the last used blobs by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shmstream import Store


def test_an_empty_store_has_nothing(store: Store) -> None:
    stock = store.stock(10)
    assert (stock.count, stock.size, stock.recent) == (0, 0, ())


def test_blobs_are_counted_and_the_last_used_ones_come_first(store: Store) -> None:
    for index, key in enumerate(("one", "two", "three")):
        path = store.fetch(key, [bytes(index + 1)])
        os.utime(path, (1000 + index, 1000))
    stock = store.stock(2)
    assert (stock.count, stock.size) == (3, 6)
    assert [(each.key, each.size, each.used) for each in stock.recent] == [
        ("three", 3, 1002.0), ("two", 2, 1001.0),
    ]  # fmt: skip
    assert [each.path for each in stock.recent] == [store.fetch("three"), store.fetch("two")]
    assert store.stock().recent == ()
    assert store.stock(10).count == len(store.stock(10).recent) == 3


def test_a_blob_whose_record_is_lost_has_no_key(store: Store) -> None:
    path = Path(store.fetch("name", [b"x"]))
    path.with_name(path.name + ".shmstream-record").unlink()
    [blob] = store.stock(5).recent
    assert (blob.key, blob.size) == (None, 1)
    path.unlink()


def test_partial_files_do_not_count(store: Store) -> None:
    partial = Path(store.folder) / "blobs" / "sha256" / ("0" * 64 + ".shmstream-partial")
    partial.write_bytes(b"x")
    assert store.stock(5).count == 0
    partial.unlink()


def test_room_is_what_the_file_system_has(store: Store) -> None:
    disk = shutil.disk_usage(store.folder)
    assert 0 < store.room() <= disk.total


def test_a_store_tells_why_it_is_none_any_more(store: Store, tmp_path: Path) -> None:
    assert store.problem() is None
    folder = Path(store.folder)
    folder.rename(tmp_path / "elsewhere")
    assert store.problem() == f"the store is gone: {folder}"
    assert not folder.exists(), "looking makes nothing"
    (tmp_path / "elsewhere").rename(folder)
    folder.chmod(0o777)
    problem = store.problem()
    assert problem is not None
    assert "others may write to" in problem
    folder.chmod(0o700)
    assert store.problem() is None


def test_a_blob_is_pinned_as_the_folder_was_looked_at(store: Store) -> None:
    for key in ("one", "two"):
        store.fetch(key, [key.encode()])
    store.pin("two")
    store.pin("yet to come")
    (_, one), (_, two) = store.blobs()
    assert (one.is_pinned, two.is_pinned) == (False, True)
    assert [each.is_pinned for each in store.stock(2).recent] == [True, False]
    store.unpin("two")
    assert two.is_pinned
    assert not any(each.is_pinned for _, each in store.blobs())
    store.unpin("yet to come")


def test_a_check_counts_the_blobs(store: Store) -> None:
    for key in ("one", "two"):
        store.fetch(key, [key.encode()])
    link = Path(store.folder, "named", "0" * 64)
    link.symlink_to("nowhere")
    findings = store.check()
    assert (findings.blobs, [each.kind for each in findings]) == (2, ["foreign"])
    link.unlink()
