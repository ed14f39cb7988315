"""The log on standard error: nobody waits for its reader."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys

import pytest

from tests.support.interpreters import PATIENCE

LOGS = """
import logging, sys
from shmstream.registry.server.error_log import log_to_stderr
log_to_stderr("one ", "INFO", as_json=len(sys.argv) > 1)
log = logging.getLogger("shmstream")
for number in range(2000):
    log.warning("%d %s\\nforged", number, "x" * 200)
print("done", flush=True)
sys.stdin.readline()
log.warning("last")
"""


@pytest.mark.parametrize("kind", ["pipe", "socket", "pipe json"])
def test_a_log_that_nobody_reads(kind: str) -> None:
    """What fits is there, the rest is dropped, and the next line says how much that is."""
    if kind.startswith("pipe"):
        reading, writing = os.pipe()
    else:
        reading, writing = (each.detach() for each in socket.socketpair())
    with subprocess.Popen(
        [sys.executable, "-c", LOGS, *kind.split()[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    ) as process:
        os.close(writing)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "done\n"
            os.set_blocking(reading, False)
            text = b""
            while more := os.read(reading, 1 << 20) if _has_more(reading) else b"":
                text += more
            process.stdin.write("\n")
            process.stdin.close()
            process.wait(PATIENCE)
            os.set_blocking(reading, True)
            while more := os.read(reading, 1 << 20):
                text += more
        finally:
            process.kill()
            os.close(reading)
    lines = text.decode().splitlines()
    whole = [each for each in lines if "x\\nforged" in each]
    assert len(whole) > 50
    lost = f"{2000 - len(whole)} lines of the log were lost: nobody read them"
    if kind == "pipe json":
        assert [json.loads(each)["message"] for each in lines[-2:]] == [lost, "last"]
        assert {json.loads(each)["process"] for each in lines} == {"one"}, (
            "a line is whole, or lost"
        )
    else:
        assert lines[-2].endswith(f"WARNING one {lost}")
        assert lines[-1].endswith("WARNING one last")
    assert len(lines) <= len(whole) + 3, "at most one was cut"


def _has_more(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
