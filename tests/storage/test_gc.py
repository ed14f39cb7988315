"""What nobody uses is removed, once it is old enough, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shmstream import Description
from shmstream.storage.gc import gc, is_abandoned, is_due
from shmstream.storage.journal import Journal
from shmstream.storage.layout import Layout, Place
from shmstream.stream.resumable_writer import ResumableStreamer
from tests.support.stores import digest

INF = float("inf")


@pytest.fixture(params=["name", digest(1, 10), "sha512:" + "a" * 128])
def place(request: pytest.FixtureRequest, layout: Layout) -> Place:
    return layout.place(request.param)


def make(path: str, age: float = 0.0) -> str:
    Path(path).touch()
    os.utime(path, (time.time() - age,) * 2)
    return path


def abandoned(layout: Layout, partial_age: float = INF) -> list[str]:
    return [each.path for each in layout.entries() if is_abandoned(each, partial_age)]


@pytest.mark.parametrize(
    "suffix", ["partial", "journal", "record", "journal.12345678", "record.12345678"]
)
def test_what_is_young_may_be_about_to_get_what_it_lacks(
    suffix: str, layout: Layout, place: Place
) -> None:
    path = make(f"{place.path}.shmstream-{suffix}", age=30)
    assert abandoned(layout) == []
    assert gc(layout, partial_age=INF) == []
    make(path, age=90)
    assert abandoned(layout) == [path]
    assert gc(layout, partial_age=INF) == [path]
    assert list(layout.entries()) == []


def test_a_blob_keeps_its_record(layout: Layout, place: Place) -> None:
    blob, record = make(place.path, age=1e6), make(place.record, age=1e6)
    assert abandoned(layout) == []
    os.unlink(blob)
    assert abandoned(layout) == [record]


def test_a_partial_file_keeps_its_journal_and_record(layout: Layout, place: Place) -> None:
    with_partial = make(place.partial), make(place.journal, age=1e6), make(place.record, age=1e6)
    assert abandoned(layout) == []
    os.unlink(with_partial[0])
    assert set(abandoned(layout)) == set(with_partial[1:])


def test_a_journal_keeps_its_partial_file_for_its_time(layout: Layout, place: Place) -> None:
    partial = make(place.partial, age=1000)
    Journal(place.journal, place.algorithm).begin(Description())
    assert abandoned(layout) == []
    assert abandoned(layout, partial_age=1001) == []
    assert abandoned(layout, partial_age=999) == [partial]
    Journal(place.journal, place.algorithm).remove()
    assert abandoned(layout, partial_age=1001) == [partial]


def test_a_journal_of_another_algorithm_keeps_nothing(layout: Layout, place: Place) -> None:
    partial = make(place.partial, age=1000)
    other = {"sha256": "sha512", "sha512": "sha256"}[place.algorithm]
    Journal(place.journal, other).begin(Description())
    # The algorithm of a name is that of the digest that was given with it.
    assert abandoned(layout) == ([] if place.is_named else [partial])


def test_what_is_written_is_kept_whatever_its_age(layout: Layout, place: Place) -> None:
    with ResumableStreamer.create(place.path, name=place.stream, digest=place.algorithm):
        os.utime(place.partial, (1, 1))
        assert abandoned(layout, partial_age=0) == []
        assert gc(layout, partial_age=0) == []


def test_foreign_files_are_left_alone(layout: Layout, place: Place) -> None:
    os.utime(make(f"{place.path}.shmstream-other"), (1, 1))
    os.utime(make(place.path + "0"), (1, 1))
    assert gc(layout, partial_age=0) == []


def test_one_of_all_that_ask_is_told_that_it_is_time(layout: Layout) -> None:
    assert not is_due(layout, 3600), "the store is young"
    os.utime(layout.mark, (1000, 1000))
    assert is_due(layout, 3600)
    assert not is_due(Layout(layout.folder), 3600)
