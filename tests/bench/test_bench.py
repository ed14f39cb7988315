"""The benchmark runs, so that it cannot rot; what it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nginx import needed

ROOT = Path(__file__).parents[2]


def measure(module: str, *arguments: object) -> str:
    """Run a measurement in short: it succeeds, and prints what is returned."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stream_in_short(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    said = measure(
        "bench.stream", "--json", report, "--dir", tmp_path, "--only", "wake-up", "attach", "memory"
    )
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"wake-up", "attach+detach", "memory"}
    assert {"date", "processor", "cores", "kernel", "python"} <= set(told["machine"])
    assert "wake-up" in said


@pytest.fixture
def has_nginx() -> None:
    needed()


@pytest.mark.usefixtures("has_nginx")
def test_flight_in_short(tmp_path: Path) -> None:
    report, charts = tmp_path / "report.json", tmp_path / "charts"
    said = measure("bench.flight", "--json", report, "--dir", tmp_path, "--charts", charts)
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"share", "single", "open", "takeover"}
    assert {each.name for each in charts.iterdir()} == {"share.png", "takeover.png"}
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in charts.iterdir())
    assert "takeover" in said
    assert [each.name for each in tmp_path.iterdir() if each not in (report, charts)] == []


@pytest.mark.usefixtures("has_nginx")
def test_peers_in_short(tmp_path: Path) -> None:
    temporary, docs = tmp_path / "temporary", tmp_path / "docs"
    temporary.mkdir()
    docs.mkdir()
    wanted = ["hits-small", "leaves"]
    measure(
        "bench.peers",
        "--peers",
        "shmstream",
        "nginx-lock",
        "--only",
        *wanted,
        "--docs",
        docs,
        "--dir",
        temporary,
    )
    page = (docs / "benchmarks.md").read_text(encoding="utf-8")
    told = {
        path.stem: json.loads(path.read_text()) for path in (docs / "benchmarks").glob("*.json")
    }
    hits, faults = told["hits-small"], told["faults"]
    assert {(each["peer"], each["turn"]) for each in hits["samples"]} == {
        (peer, turn) for peer in ("shmstream", "nginx-lock", "shmstream-nginx") for turn in (0, 1)
    }
    # nginx has a blob a moment after its client has it, and asks again if somebody is quicker.
    assert {each["gets"] for each in hits["samples"] if each["peer"] != "nginx-lock"} == {0}
    assert {(each["peer"], each["right"], each["extra"]) for each in faults["outcomes"]} == {
        ("shmstream", 4, 0),
        ("nginx-lock", 4, 0),
    }
    assert {"date", "processor", "cores", "kernel"} <= set(hits["machine"])
    assert "nginx, lock" in page
    assert "A quick run" in page
    assert "faults.png" in page
    assert list(temporary.iterdir()) == []


def test_fsspec_in_short(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before <!-- bench.fsspec: begin --> <!-- bench.fsspec: end --> after")
    measure("bench.fsspec", "--docs", page, "--dir", tmp_path, "--size", "2", "--processes", "2")
    told = page.read_text(encoding="utf-8")
    assert told.startswith("before <!--")
    assert told.endswith("--> after")
    for way in ("shmstream", "filecache", "simplecache", "blockcache"):
        assert f"| `{way}::` |" in told
    assert list(tmp_path.iterdir()) == [page]


def test_many_in_short(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    others = set(os.listdir("/dev/shm"))
    measure("bench.many", "--json", report, "--dir", tmp_path)
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"crowd", "store"}
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert set(os.listdir("/dev/shm")) == others
