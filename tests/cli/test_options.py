"""Options of several commands: the store, sizes, durations and digests."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream import Store
from shmstream.cli import command as root
from shmstream.cli import options
from shmstream.storage.folder import default_folder
from tests.cli.conftest import DIGEST, Run
from tests.support.origin import Origin


@pytest.mark.parametrize("command", ["ls", "top", "check", "rm a", "pin a", "cancel a"])
def test_a_mistyped_store_is_not_made(run: Run, tmp_path: Path, command: str) -> None:
    nowhere = str(tmp_path / "nowhere")
    for folder in (nowhere, str(tmp_path)):
        code, out, told = run(*command.split(), "--store", folder)
        assert (code, out) == (1, "")
        assert told == f"Error: there is no store in {folder!r}; `shmstream fetch` makes one\n"
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_a_store_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, out, told = run("fetch", "file", "--store", "/proc/store")
    assert (code, out) == (1, "")
    assert told.startswith("Error: /proc/store cannot hold a store: ")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "chmod go-w" in run("fetch", "file", "--store", "open")[2]


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SHMSTREAM_STORE", raising=False)
    for cache, folder in (
        ("", "/home/me/.cache/shmstream"),
        ("relative", "/home/me/.cache/shmstream"),
        ("/cache", "/cache/shmstream"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert default_folder() == folder
    monkeypatch.setenv("SHMSTREAM_STORE", "~/blobs")
    assert default_folder() == "/home/me/blobs"


@given(some.text())
def test_any_text_has_a_value_or_is_refused(text: str) -> None:
    """A parser refuses a wrong text with BadParameter, and with no other error."""
    for parse in (options.size, options.duration, options.digest):
        with suppress(click.BadParameter):
            parse(text)


@given(some.integers(0, 10**30 - 1))
@example(9_007_199_254_740_993)  # no float has this value
def test_whole_sizes_are_exact(number: int) -> None:
    assert options.size(str(number)) == options.size(f" {number} B ") == number
    assert options.size(f"{number}GiB") == options.size(f"{number}g") == number << 30
    assert options.size(f"{number}gb") == number * 10**9


def test_a_size_that_nothing_can_have() -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        options.size("9" * 400)


@given(some.binary(min_size=64, max_size=64), some.sampled_from(["sha256", "sha512"]))
def test_a_digest_in_any_case(data: bytes, algorithm: str) -> None:
    told = data[: hashlib.new(algorithm).digest_size].hex()
    key = f"{algorithm}:{told}"
    assert options.digest(f" {key.upper()}\n") == options.digest(key) == key
    for wrong in (key[:-1], f"{key}0", f"{algorithm}:{told[:-1]}g", f"md5:{told}", "a name", ""):
        with pytest.raises(click.BadParameter, match="digest"):
            options.digest(wrong)


def test_sha256sum_prints_a_digest_without_its_algorithm() -> None:
    assert options.digest(DIGEST.partition(":")[2]) == DIGEST


def test_sizes_and_durations() -> None:
    for text, value in (
        ("1234", 1234), ("0", 0), ("12b", 12), ("500MB", 500_000_000), ("10GiB", 10 << 30),
        ("10g", 10 << 30), ("1.5 KiB", 1536), ("2kb", 2000), ("1T", 1 << 40),
    ):  # fmt: skip
        assert options.size(text) == value
    for text, value in (("90", 90), ("90s", 90), ("1.5m", 90), ("12h", 43200), ("7d", 604800)):
        assert options.duration(text) == value


def test_each_option_has_a_variable() -> None:
    for name, command in root.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and not isinstance(option.flag_value, str):
                told = option.envvar
                assert told, f"{name} {option.opts}"
                named = [told] if isinstance(told, str) else list(told)
                assert named[0].startswith("SHMSTREAM_")


def test_variables_are_options(
    run: Run, url: str, store: Store, monkeypatch: pytest.MonkeyPatch, origin: Origin
) -> None:
    monkeypatch.setenv("SHMSTREAM_FETCH_DIGEST", DIGEST)
    monkeypatch.setenv("SHMSTREAM_FETCH_QUIET", "1")
    monkeypatch.setenv("SHMSTREAM_FETCH_HEADER", "X-One: a b\nX-Two: c")
    assert run("fetch", url) == (0, f"{store.path(DIGEST)}\n", "")
    headers = origin.requests("/blob")[0].headers
    assert (headers["x-one"], headers["x-two"]) == ("a b", "c")
    assert run("fetch", url, "--digest", f"sha256:{'0' * 64}")[0] == 1  # the option counts
    monkeypatch.setenv("SHMSTREAM_MAX_BYTES", "1KiB")
    assert run("evict")[1] == f"{store.path(DIGEST)}\n"
    monkeypatch.setenv("SHMSTREAM_EVICT_MAX_BYTES", "nonsense")
    code, _, told = run("evict")
    assert code == 2
    assert "'--max-bytes': 'nonsense' is no size" in told
