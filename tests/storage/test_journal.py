"""The journal of a partial file: never an exception, never more trusted than was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream import Description
from shmstream.storage import journal
from shmstream.storage.journal import Journal
from tests.support.roles import content

DATA = content(1, 1000)
NOTED = (100, 400, 900)
METADATA = Description(2000, '"v1"', "text/x-test")


def digest_up_to(offset: int) -> str:
    return hashlib.sha256(DATA[:offset]).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    path = tmp_path / "partial"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that are there already are of another boot by now."""
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")


def write(path: Path) -> str:
    """The text of a journal that has every line of `NOTED`."""
    path.unlink(missing_ok=True)
    written = Journal(str(path), "sha256")
    written.begin(METADATA)
    for offset in NOTED:
        written.note(offset, digest_up_to(offset))
    return path.read_text()


def trusted(path: Path, partial: Path) -> int:
    read = Journal(str(path), "sha256")
    fd = os.open(partial, os.O_RDONLY)
    try:
        return read.trusted(fd)
    finally:
        os.close(fd)


# What is written is read.


def sealed(path: Path, partial: Path) -> None:
    fd = os.open(partial, os.O_RDONLY)
    try:
        Journal(str(path), "sha256").seal(fd)
    finally:
        os.close(fd)


def test_while_the_machine_is_up_every_byte_of_a_sealed_file_counts(
    path: Path, partial: Path
) -> None:
    write(path)
    assert trusted(path, partial) == 900, "without a seal, the checkpoints"
    for _ in range(2):
        sealed(path, partial)
    read = Journal(str(path), "sha256")
    assert (read.metadata, read.covers, read.defect) == (METADATA, 900, None)
    assert read.vouches
    assert trusted(path, partial) == len(DATA)
    assert path.read_text().count("seal ") == 1


def test_a_seal_is_of_one_file_as_it_was(path: Path, partial: Path) -> None:
    """Whatever sets the times back: the kernel's own time of change tells."""
    write(path)
    for damaged, good in ((950, 900), (500, 400)):
        partial.write_bytes(DATA)
        sealed(path, partial)
        assert trusted(path, partial) == len(DATA)
        facts = partial.stat()
        with partial.open("r+b") as file:
            file.seek(damaged)
            file.write(b"?")
        os.utime(partial, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert trusted(path, partial) == good
    partial.write_bytes(DATA)
    sealed(path, partial)
    os.replace(shutil.copy2(partial, f"{partial}.copy"), partial)
    assert trusted(path, partial) == 900
    sealed(path, partial)
    partial.open("ab").close()
    assert trusted(path, partial) == len(DATA)
    with partial.open("ab") as file:
        file.write(b"!")
    assert trusted(path, partial) == 900


def test_a_seal_is_of_one_boot(path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page cache had may be lost, and nothing tells."""
    write(path)
    sealed(path, partial)
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    assert trusted(path, partial) == 900
    sealed(path, partial)
    assert trusted(path, partial) == 900, "a journal of another boot is not sealed"


def test_a_seal_survives_further_checkpoints_and_a_new_beginning(path: Path, partial: Path) -> None:
    write(path)
    sealed(path, partial)
    Journal(str(path), "sha256").note(950, digest_up_to(950))
    assert trusted(path, partial) == len(DATA)
    os.truncate(partial, 900)
    assert trusted(path, partial) == 900
    fd = os.open(partial, os.O_RDONLY)
    Journal(str(path), "sha256").begin(METADATA, 900, fd)
    os.close(fd)
    read = Journal(str(path), "sha256")
    assert (read.covers, read.defect) == (900, None)
    path.write_text(path.read_text().partition("\n")[0] + "\nseal 1 1 1 1\n")
    assert trusted(path, partial) == 0


def test_nothing_is_sealed_without_a_journal(path: Path, partial: Path) -> None:
    sealed(path, partial)
    assert not path.exists()


def test_after_a_reboot_the_last_good_checkpoint_counts(
    path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path)
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    assert trusted(path, partial) == 900
    for damaged, good in ((950, 900), (899, 400), (100, 100), (0, 0)):
        partial.write_bytes(DATA[:damaged] + b"?" + DATA[damaged + 1 :])
        assert trusted(path, partial) == good
    for size, good in ((900, 900), (899, 400), (99, 0)):
        partial.write_bytes(DATA[:size])
        assert trusted(path, partial) == good


def test_beginning_anew_keeps_the_checkpoints_of_what_is_kept(path: Path) -> None:
    write(path)
    again = Journal(str(path), "sha256")
    again.begin(Description(size=5), kept=400)
    assert again.covers == 400
    again.note(300, "a successor hashes from the beginning")
    read = Journal(str(path), "sha256")
    assert (read.metadata.size, read.covers, read.defect) == (5, 400, None)


def test_a_journal_of_another_algorithm_vouches_for_nothing(path: Path) -> None:
    write(path)
    read = Journal(str(path), "sha512")
    assert not read.vouches
    assert read.metadata == Description()


def test_removing_it_twice_is_no_error(path: Path) -> None:
    write(path)
    read = Journal(str(path), "sha256")
    read.remove()
    read.remove()
    assert not path.exists()
    assert not Journal(str(path), "sha256").exists


def test_an_empty_journal_vouches_for_nothing_and_is_no_defect(path: Path) -> None:
    """Its leader was killed between making the file and writing to it."""
    path.write_text("")
    begun = Journal(str(path), "sha256")
    assert (begun.vouches, begun.exists, begun.defect) == (False, True, None)


def test_what_is_no_file_is_a_defect(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    planted = Journal(str(path), "sha256")
    assert (planted.vouches, planted.exists) == (False, True)
    assert planted.defect is not None
    path.unlink()
    path.mkdir()
    planted = Journal(str(path), "sha256")
    assert (planted.vouches, planted.exists) == (False, True)
    assert planted.defect is not None


# Whatever it says, no byte is trusted that was not written.


@pytest.mark.usefixtures("reboot")
def test_random_text_is_never_trusted(path: Path, partial: Path) -> None:
    @given(some.binary(max_size=500))
    @example(b"")
    @example(b"\n")
    @example(b"[" * 100_000 + b"\n")
    @example(b"[]\n1 a\n")
    @example(b"{}\n")
    @example(b'{"algorithm": "sha256", "boot": 5, "metadata": "{}"}\n')
    @example(b'{"algorithm": "sha256", "boot": "b", "metadata": 5}\n')
    @example(b'{"algorithm": "sha256", "boot": "b", "metadata": "{}"}\n' + b"9" * 5000 + b" a\n")
    @example(b'{"algorithm": "sha256", "boot": "b", "metadata": "{}"}\n18446744073709551616 a\n')
    @example('{"algorithm": "sha256", "boot": "b", "metadata": "{}"}\n\u0661 a\n'.encode())
    def prove(text: bytes) -> None:
        path.write_bytes(text)
        assert trusted(path, partial) == 0

    prove()


LINES = some.one_of(
    some.sampled_from(sorted({0, 1, 99, 101, 399, 1000, 2000, *NOTED})).map(str),
    some.integers(-5, 1 << 70).map(str),
    some.text(max_size=20),
)


@pytest.mark.usefixtures("reboot")
def test_checkpoints_that_say_anything_are_believed_as_far_as_the_bytes_prove_them(
    path: Path, partial: Path
) -> None:
    """Any offsets in any order, with the digest of some of the bytes or any other text."""
    header = {"algorithm": "sha256", "boot": "before", "metadata": METADATA.to_text(999).decode()}
    digests = some.one_of(some.integers(0, 1000).map(digest_up_to), some.text(max_size=80))

    @given(some.lists(some.tuples(LINES, digests), max_size=6))
    @example([("100", digest_up_to(100)), ("9" * 5000, "")])
    @example([("100", digest_up_to(100)), ("99", digest_up_to(99)), ("400", digest_up_to(400))])
    def prove(checkpoints: list[tuple[str, str]]) -> None:
        lines = [json.dumps(header), *(f"{offset} {found}" for offset, found in checkpoints)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        count = trusted(path, partial)
        assert 0 <= count <= len(DATA)
        assert count == 0 or (str(count), digest_up_to(count)) in checkpoints
        good = [offset for offset, found in checkpoints if found == digest_up_to_text(offset)]
        if good == [each for each, _ in checkpoints] and ascends(good):
            assert count == int(good[-1]) if good else count == 0

    prove()


def digest_up_to_text(offset: str) -> str | None:
    """The digest of so many bytes; None if that is no number of bytes that there are."""
    is_number = offset.isascii() and offset.isdecimal() and len(offset) < 5
    return digest_up_to(int(offset)) if is_number and 0 < int(offset) <= len(DATA) else None


def ascends(offsets: list[str]) -> bool:
    return all(int(one) < int(two) for one, two in pairwise(offsets))


def test_a_changed_journal_is_trusted_no_further_than_it_was_written(
    path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torn, overwritten, cut out of, or with bytes in between: as a crash leaves it, and worse."""
    text = write(path).encode()
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    places = some.integers(0, len(text))
    changes = some.lists(some.tuples(places, places, some.binary(max_size=8)), max_size=4)

    @given(changes)
    @example([])
    @example([(len(text), len(text), b"5")])
    @example([(0, len(text), text + text)])
    def prove(changes: list[tuple[int, int, bytes]]) -> None:
        changed = text
        for begin, end, new in changes:
            changed = changed[:begin] + new + changed[max(begin, end) :]
        path.write_bytes(changed)
        assert trusted(path, partial) in {0, *NOTED}
        assert Journal(str(path), "sha256").covers < 1 << 63

    prove()


def test_a_torn_journal_is_good_up_to_its_last_whole_line(
    path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write(path)
    monkeypatch.setattr(journal, "boot_id", lambda: "another boot")
    for length in range(len(text) + 1):
        path.write_text(text[:length])
        whole = text[:length].count("\n")
        expected = (0, 0, *NOTED)[whole]
        assert trusted(path, partial) == expected
        assert Journal(str(path), "sha256").covers == expected


def test_a_line_that_is_no_checkpoint_spoils_none_before_it(path: Path, partial: Path) -> None:
    for line in ("9" * 5000, "\u0669\u0669\u0669", "-1", "1.5", " 950", "950", "950 ", ""):
        text = write(path)
        path.write_text(f"{text}{line} \n" if line else text + "\n")
        read = Journal(str(path), "sha256")
        assert (read.covers, read.defect) == (900, "its line 5 is no checkpoint")
        assert read.vouches
        assert trusted(path, partial) == 900
