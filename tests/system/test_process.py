"""This process: its identity, and what happens when it forks."""

from __future__ import annotations

import os

from shmstream.system.process import Identity


def test_identities() -> None:
    me = Identity.mine()
    assert me.pid == os.getpid()
    assert "python" in str(me)
    assert "since ended" in str(Identity(me.pid, me.started + 10**9, me.namespace))
    assert "since ended" in str(Identity(2**22 - 1, 1, me.namespace))
    assert "another pid namespace" in str(Identity(1, 1, 1))
