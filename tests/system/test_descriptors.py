"""Room for descriptors: there from the beginning, in a fork too, and as large as allowed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

ROOM = textwrap.dedent(
    """
    import os, re, resource, sys, threading
    from shmstream.system.descriptors import make_room

    def places():
        return int(re.search(r"FDSize:\\s*(\\d+)", open("/proc/self/status").read())[1])

    if allowed := int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    before, opened = places(), set(os.listdir("/proc/self/fd"))
    make_room()
    assert set(os.listdir("/proc/self/fd")) == opened
    make_room()
    told = [before, places()]
    if (child := os.fork()) == 0:
        print(*told, places(), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
)


@pytest.mark.parametrize(("allowed", "room"), [(0, 4096), (300, 300), (20, 64)])
def test_there_is_room_for_descriptors(allowed: int, room: int) -> None:
    command = [sys.executable, "-c", ROOM, str(allowed)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    before, there, in_child = map(int, told.split())
    assert before < 300
    assert there >= room
    assert in_child >= room
