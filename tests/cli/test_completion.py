"""`completion`: the scripts for shells, and what bash completes with one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, script, told = run("completion", shell)
    assert (code, told) == (0, "")
    assert "_SHMSTREAM_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    if shell == "bash":
        monkeypatch.setenv("_SHMSTREAM_COMPLETE", "bash_complete")
        for line, found in (("fe", "plain,fetch"), ("ls --js", "plain,--json")):
            monkeypatch.setenv("COMP_WORDS", f"shmstream {line}")
            monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
            assert run()[1].split() == [found]
