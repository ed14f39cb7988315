"""This process: its identity, and what happens when it forks or ends."""

from __future__ import annotations

import os
import subprocess
import sys

from shmstream.system.process import Identity


def test_identities() -> None:
    me = Identity.mine()
    assert me.pid == os.getpid()
    assert "python" in str(me)
    assert "since ended" in str(Identity(me.pid, me.started + 10**9, me.namespace))
    assert "since ended" in str(Identity(2**22 - 1, 1, me.namespace))
    assert "another pid namespace" in str(Identity(1, 1, 1))


OWNERS = """
import os
from shmstream.system import process

class Owner:
    def __init__(self, name):
        self.name = name

    def close(self):
        print(self.name, "is closed", flush=True)

    def abandon(self):
        print(self.name, "is abandoned", flush=True)
        raise ArithmeticError(self.name)

process.after_fork(lambda: print("first act", flush=True))
writer, reader, descriptor = Owner("writer"), Owner("reader"), Owner("descriptor")
process.register(writer)
process.register(reader, reads=True)
with process.fork_lock:
    process.track(descriptor)
process.after_fork(lambda: print("second act", flush=True))
if os.fork() == 0:
    print("the child has nothing to close", flush=True)
    process.close_all()
    os._exit(0)
os.wait()
print("the parent ends", flush=True)
"""


def test_the_order_of_what_happens_in_a_forked_child_and_at_the_end() -> None:
    """Whatever fails on the way."""
    done = subprocess.run(
        [sys.executable, "-c", OWNERS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "descriptor is closed",
        "reader is abandoned",
        "writer is abandoned",
        "first act",
        "second act",
        "the child has nothing to close",
        "the parent ends",
        "reader is closed",
        "writer is closed",
    ]
    assert "ArithmeticError: writer" in done.stderr
