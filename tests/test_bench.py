"""The benchmark runs, so that it cannot rot; what it measures here means nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_fanout_in_short(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "bench/fanout.py", "--quick", "--json", report, "--dir", tmp_path,
            "--only", "wake-up", "attach", "memory",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"wake-up", "attach+detach", "memory"}
    assert {"date", "processor", "cores", "kernel", "python"} <= set(told["machine"])
    assert "wake-up" in done.stdout


def test_flight_in_short(tmp_path: Path) -> None:
    if shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        if os.environ.get("SHMSTREAM_REQUIRE_REAL") == "1":
            pytest.fail("nginx is not installed: apt-get install nginx-light")
        pytest.skip("nginx is not installed")
    report, charts = tmp_path / "report.json", tmp_path / "charts"
    done = subprocess.run(
        [
            sys.executable, "bench/flight.py", "--quick", "--json", report, "--dir", tmp_path,
            "--charts", charts,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"share", "single", "open", "takeover"}
    assert {each.name for each in charts.iterdir()} == {"share.png", "takeover.png"}
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in charts.iterdir())
    assert "takeover" in done.stdout
    assert [each.name for each in tmp_path.iterdir() if each not in (report, charts)] == []
