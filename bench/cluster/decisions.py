"""How long the directory takes for a decision, with 10,000 members of one flight: a real Redis.

What counts is the time inside Redis, which it tells itself: it makes one decision after another.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from shmstream.cluster import scripts

MEMBERS = 10_000
_ASKED = 3_000
_KEY = "sha256:" + "0" * 64
_NAMES = [scripts.name_of(_KEY, each) for each in scripts.KEYS]


def measure() -> float:
    """Microseconds for one call of `decide`."""
    import redis

    with tempfile.TemporaryDirectory(prefix="shmstream-") as folder:
        path = f"{folder}/redis"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
        with subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL) as server:
            try:
                while not Path(path).exists():
                    time.sleep(0.01)
                with redis.Redis(unix_socket_path=path) as client:
                    return _measure(client)
            finally:
                server.kill()


def _measure(client: Any) -> float:
    decide = client.register_script(scripts.DECIDE)

    def ask(members: list[int]) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for each in members:
                me = [f"10.{each >> 8}.{each & 255}.1:5001", f"{each:016x}", 3000, 3600]
                chance = random.randrange(1, 1 << 30)
                decide(_NAMES, [*me, 1, 2, chance, "", "", "origin"], client=pipeline)
            pipeline.execute()

    for start in range(0, MEMBERS, 1000):
        ask(list(range(start, start + 1000)))
    client.config_resetstat()
    ask([random.randrange(MEMBERS) for _ in range(_ASKED)])
    stats = client.info("commandstats")["cmdstat_evalsha"]
    assert stats["calls"] == _ASKED
    return float(stats["usec_per_call"])


def tell() -> str:
    """As a sentence."""
    return f"With {MEMBERS:,} members of one flight, Redis takes {measure():.0f} us for a decision."


if __name__ == "__main__":
    print(tell())
