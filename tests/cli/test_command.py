"""The command line as a whole: its commands and their help."""

from __future__ import annotations

import re

from tests.cli.conftest import Begin, Run

COMMANDS = (
    "fetch", "serve", "pull", "hosts", "ls", "top", "cluster", "rm", "pin", "unpin", "cancel",
    "check", "gc", "evict", "demo", "completion",
)  # fmt: skip


def test_help(run: Run, begin: Begin) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert re.findall(r"^  (\w+)  +[A-Z].*\.$", out, re.M) == list(COMMANDS)
    assert "130" in out
    for command, running in [(command, begin(command, "-h")) for command in COMMANDS]:
        code, text, told = running.finish()
        out = text.decode()
        assert (code, told) == (0, "")
        assert out.startswith(f"Usage: shmstream {command} ")
        assert all(len(line) <= 88 for line in out.splitlines())
