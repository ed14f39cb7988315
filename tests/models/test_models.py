"""The models hold, and spin finds each deliberate bug in them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tools.models import CONNECTIONS, PROGRAMS, STREAM, check, missing
from tools.models.bounds import MODELS, Model

MEGABYTES = 1000


@pytest.fixture(scope="module")
def spin() -> None:
    """Skip these tests without spin; with SHMSTREAM_REQUIRE_REAL=1, fail them."""
    if missing():
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            pytest.fail(f"not all is installed: apt-get install {' '.join(PROGRAMS)}")
        pytest.skip(f"{' and '.join(missing())} is not installed")


QUICK = [
    pytest.param(model.path, scope.bounds, id=f"{model.path.stem}: {scope.what}")
    for model in MODELS
    for scope in model.quick
]
BUGS = [
    pytest.param(model.path, bounds, bug, id=bug)
    for model in MODELS
    for bug, bounds in model.bugs.items()
]


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize(("path", "bounds"), QUICK)
def test_the_model_holds(path: Path, bounds: dict[str, int], tmp_path: Path) -> None:
    outcome = check(path, bounds, tmp_path, megabytes=MEGABYTES)
    assert outcome.error is None, outcome.trail
    assert outcome.states > 1000


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize(("path", "bounds", "bug"), BUGS)
def test_a_deliberate_bug_is_found(
    path: Path, bounds: dict[str, int], bug: str, tmp_path: Path
) -> None:
    outcome = check(path, bounds, tmp_path, bug=bug, megabytes=MEGABYTES)
    assert outcome.error is not None
    assert outcome.trail, "spin shows the steps that lead there"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.path.stem)
def test_every_bug_and_every_bound_is_in_the_model(model: Model) -> None:
    text = model.path.read_text(encoding="utf-8")
    bugs = set(re.findall(r"^#ifn?def (BUG_\w+)", text, re.MULTILINE))
    bugs |= set(re.findall(r"^#if .*defined\((BUG_\w+)\)", text, re.MULTILINE))
    assert bugs == set(model.bugs)
    bounds = set(re.findall(r"^#ifndef ((?!BUG_)\w+)", text, re.MULTILINE))
    for scope in [*model.whole, *model.quick]:
        assert set(scope.bounds) <= bounds
    for each in model.bugs.values():
        assert set(each) <= bounds


@pytest.mark.parametrize(
    ("path", "rules"),
    [(STREAM, [f"I{number}" for number in range(1, 9)]), (CONNECTIONS, ["K1", "K2", "K3"])],
    ids=["stream", "connections"],
)
def test_the_model_cites_every_invariant(path: Path, rules: list[str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(rules) <= set(re.findall(r"\b[IK]\d\b", text))
