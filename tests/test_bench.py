"""The benchmark runs, so that it cannot rot; what it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
