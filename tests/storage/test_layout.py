"""Where a blob lies: each key has one place in the folder, and no other key has it."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream import StoreUnusable
from shmstream.storage.layout import Entry, Layout, algorithm_at, digest_at
from shmstream.stream.segment import NAME_LIMIT
from shmstream.stream.spelling import ALGORITHMS, is_spelled, read_digest
from tests.support.stores import digest

HEX = "0123456789abcdef"
DIGESTS = some.one_of(
    some.text(HEX, min_size=64, max_size=64).map("sha256:{}".format),
    some.text(HEX, min_size=128, max_size=128).map("sha512:{}".format),
)
NEARLY = some.builds(
    "{}{}{}".format,
    some.sampled_from(("sha256", "sha512", "SHA256", "sha1")),
    some.sampled_from((":", "", "/", ": ")),
    some.text(HEX + "ABCg/.\n\u0661", min_size=60, max_size=130),
)
KEYS = some.text(some.characters(exclude_categories=())) | DIGESTS | NEARLY


def test_a_key_has_a_place_in_the_folder_or_is_none(layout: Layout) -> None:
    shelves = {
        f"{layout.folder}/{each}" for each in ("named", *(f"blobs/{it}" for it in ALGORITHMS))
    }

    @given(KEYS)
    @example("")
    @example("sha256:" + "a" * 63)
    @example("sha256:" + "a" * 64 + "\n")
    @example("../../escape")
    @example("a\0b")
    @example("\ud800")
    @example("x" * 10_000)
    def prove(key: str) -> None:
        try:
            place = layout.place(key)
        except ValueError:
            assert not key or not is_spelled(key)
            return
        shelf, name = os.path.split(place.path)
        assert shelf in shelves
        assert set(name) <= set(HEX)
        assert layout.has(place.path)
        meant = read_digest(key)
        assert place.is_given == (meant is not None)
        assert place.key == (meant or key)
        assert place.is_named == (meant is None) == (os.path.basename(shelf) == "named")
        assert algorithm_at(place.path) == (None if meant is None else place.algorithm)
        assert digest_at(place.path) == meant
        assert len(place.stream) <= NAME_LIMIT
        assert place.stream.isalnum()

    prove()


def test_two_keys_share_nothing(layout: Layout) -> None:
    @given(KEYS, KEYS)
    @example("a", "A")
    @example("\ud800", "\ud801")
    @example("\u00e9", "e\u0301")
    @example("a", "a\0")
    def prove(one: str, other: str) -> None:
        try:
            places = [layout.place(key) for key in (one, other)]
        except ValueError:
            return
        count = len({read_digest(each) or each for each in (one, other)})
        assert len({each.path for each in places}) == count
        assert len({each.stream for each in places}) == count

    prove()


def test_a_name_is_the_key_of_one_path(layout: Layout) -> None:
    path = layout.place("name").path
    assert layout.is_named("name", path)
    assert not layout.is_named("another name", path)
    for no_name in ("", "sha256:none", "a" * 64):  # what is no key of a named blob
        hashed = hashlib.sha256(no_name.encode()).hexdigest()
        assert not layout.is_named(no_name, os.path.join(layout.folder, "named", hashed))


def test_a_key_is_a_text(layout: Layout) -> None:
    for key in (None, 5, b"key"):
        with pytest.raises(ValueError, match="a key is a digest, or any text"):
            layout.place(key)  # type: ignore[arg-type]


def test_the_folder_of_a_rare_algorithm_is_made_when_it_is_needed(layout: Layout) -> None:
    place = layout.place("md5:" + "0" * 32)
    assert layout.open(place) is None
    assert list(layout.entries()) == []
    assert not os.path.exists(f"{layout.folder}/blobs/md5")
    for _ in range(2):
        layout.make_shelf(place)
    Path(place.path).touch()
    assert [each.path for each in Layout(layout.folder).blobs()] == [place.path]
    assert layout.key_of(place.path) == place.key
    kept = Path(f"{layout.folder}/blobs/md5").rename(f"{layout.folder}/kept")
    Path(f"{layout.folder}/blobs/md5").symlink_to(kept)
    for make in (partial(Layout, layout.folder), partial(layout.make_shelf, place)):
        with pytest.raises(StoreUnusable, match="symbolic link"):
            make()


def test_the_same_key_has_another_stream_in_another_store(tmp_path: Path) -> None:
    one, other = Layout(tmp_path / "one").place("key"), Layout(tmp_path / "other").place("key")
    assert one.stream != other.stream
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert Layout(tmp_path / "link").place("key") == one, "one folder by two names is one store"


# What a file is, by its name.


def kinds(layout: Layout) -> dict[str, str]:
    return {os.path.relpath(each.path, layout.folder): each.kind for each in layout.entries()}


@pytest.mark.parametrize("key", ["name", digest(1, 10), "sha512:" + "a" * 128, "md5:" + "a" * 32])
def test_files_of_a_blob_are_known_by_their_names(key: str, layout: Layout) -> None:
    place = layout.place(key)
    layout.make_shelf(place)
    made = {
        place.path: "blob",
        place.partial: "partial",
        place.journal: "journal",
        place.record: "record",
        f"{place.record}.12345678": "temporary",
        f"{place.partial}.12345678": "temporary",
        f"{place.journal}.12345678": "temporary",
    }
    for path in made:
        Path(path).touch()
    assert {each.path: each.kind for each in layout.entries()} == made
    for kind in made.values():
        expected = {path for path in made if made[path] == kind}
        assert {each.path for each in layout.entries((kind,))} == expected
    assert [each.path for each in layout.blobs()] == [place.path]


def test_other_files_are_foreign(layout: Layout, tmp_path: Path) -> None:
    place = layout.place("name")
    Path(place.path).mkdir()
    Path(place.record).symlink_to(tmp_path)
    os.mkfifo(place.partial)
    assert set(kinds(layout).values()) == {"foreign"}

    @given(some.text(some.characters(exclude_characters="/\0", codec="utf-8"), min_size=1))
    @example("0" * 63)
    @example("0" * 65)
    @example("0" * 128)
    @example("A" * 64)
    @example("\u0661" * 64)
    @example("0" * 64 + ".shmstream-partiaL")
    @example("0" * 64 + ".shmstream-journal.123456789")
    def prove(name: str) -> None:
        path = Path(layout.folder, "blobs", "sha256", name)
        if name in (".", "..") or len(os.fsencode(name)) > 255:
            return
        path.touch()
        [entry] = [each for each in layout.entries() if each.path == str(path)]
        path.unlink()
        assert entry.kind == "foreign"

    prove()


def test_blobs_are_in_the_order_of_their_last_use(layout: Layout) -> None:
    paths = [layout.place(f"key {number}").path for number in range(4)]
    for path, used in zip(paths, (40, 20, 30, 20), strict=True):
        Path(path).write_bytes(b"x")
        os.utime(path, (used, 1000))
    found: list[Entry] = layout.blobs()
    assert [each.used for each in found] == [20, 20, 30, 40]
    assert {each.path for each in found} == set(paths)
    place = layout.place("key 1")
    opened = layout.open(place)
    assert opened is not None
    os.close(opened[0])
    assert opened[1] == 1
    assert layout.blobs()[-1].path == place.path, "opening a blob uses it"
    assert os.stat(place.path).st_mtime == 1000, "and does not change it"
