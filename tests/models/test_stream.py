"""The model of the stream holds, and spin finds each deliberate bug in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tools.models import PROGRAMS, STREAM, check, missing
from tools.models.bounds import BUGS, QUICK, WHOLE, Scope

MEGABYTES = 1000


@pytest.fixture(scope="module")
def spin() -> None:
    """Skip these tests without spin; with SHMSTREAM_REQUIRE_REAL=1, fail them."""
    if missing():
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            pytest.fail(f"not all is installed: apt-get install {' '.join(PROGRAMS)}")
        pytest.skip(f"{' and '.join(missing())} is not installed")


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("scope", QUICK, ids=lambda scope: scope.what)
def test_the_model_holds(scope: Scope, tmp_path: Path) -> None:
    outcome = check(scope.bounds, tmp_path, megabytes=MEGABYTES)
    assert outcome.error is None, outcome.trail
    assert outcome.states > 1000


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("bug", BUGS)
def test_a_deliberate_bug_is_found(bug: str, tmp_path: Path) -> None:
    outcome = check(BUGS[bug], tmp_path, bug=bug, megabytes=MEGABYTES)
    assert outcome.error is not None
    assert outcome.trail, "spin shows the steps that lead there"


def test_every_bug_and_every_bound_is_in_the_model() -> None:
    text = STREAM.read_text(encoding="utf-8")
    assert set(re.findall(r"^#ifn?def (BUG_\w+)", text, re.MULTILINE)) == set(BUGS)
    bounds = set(re.findall(r"^#ifndef ((?!BUG_)\w+)", text, re.MULTILINE))
    for scope in [*WHOLE, *QUICK]:
        assert set(scope.bounds) <= bounds


def test_the_model_cites_every_invariant() -> None:
    text = STREAM.read_text(encoding="utf-8")
    assert {f"I{number}" for number in range(1, 9)} <= set(re.findall(r"\bI\d\b", text))
