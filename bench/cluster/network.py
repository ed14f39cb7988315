"""A network of its own: hosts as network namespaces, on a bridge, each with a link of some rate.

    with Network() as network:
        host = network.host("node1", 400)        Mbit/s, in both directions
        subprocess.Popen([*host.within, ...])    a program on that host
        host.cut(), host.mend()                  its link

Needs root, and `ip` and `tc` of iproute2. The hosts see each other, and nothing else.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack

from bench.closing import Closing

_NET = "10.77.0"


class NoNetwork(Exception):
    """Namespaces cannot be made here."""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetwork(f"{' '.join(command)}: {done.stderr.strip()}")


class Host:
    """One host: a namespace with the address `address`."""

    def __init__(self, namespace: str, address: str, switch: str, port: str) -> None:
        self.within: tuple[str, ...] = ("ip", "netns", "exec", namespace)
        self.address: str = address
        self._link = ("ip", "-n", switch, "link", "set", port)

    def cut(self) -> None:
        """Nothing goes in or out any more."""
        _run(*self._link, "down")

    def mend(self) -> None:
        """The link is as before."""
        _run(*self._link, "up")


class Network(Closing):
    """The switch and its hosts."""

    def __init__(self) -> None:
        """Raises:
        NoNetwork: this user, or this machine, has no namespaces.
        """
        if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
            raise NoNetwork("it needs root, and `ip` and `tc` of iproute2")
        self._name = f"shms{secrets.token_hex(2)}"
        self._undo = ExitStack()
        self._count = 0
        self._switch = self._namespace("sw")
        _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "br0", "up")

    def _namespace(self, name: str) -> str:
        namespace = f"{self._name}{name}"
        _run("ip", "netns", "add", namespace)
        self._undo.callback(_run, "ip", "netns", "del", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def host(self, name: str, rate: int) -> Host:
        """A host with a link of `rate` Mbit/s in each direction; 0: as fast as it can."""
        self._count += 1
        namespace, port = self._namespace(name), f"p{self._count}"
        address = f"{_NET}.{self._count}"
        _run(
            *("ip", "-n", self._switch, "link", "add", port, "type", "veth"),
            *("peer", "name", "eth0", "netns", namespace),
        )
        _run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "eth0", "up")
        if rate:
            shape = ("root", "tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "50ms")
            _run("tc", "-n", namespace, "qdisc", "add", "dev", "eth0", *shape)
            _run("tc", "-n", self._switch, "qdisc", "add", "dev", port, *shape)
        return Host(namespace, address, self._switch, port)

    def close(self) -> None:
        """Remove all namespaces. Programs in them keep theirs until they end. Idempotent."""
        self._undo.close()
