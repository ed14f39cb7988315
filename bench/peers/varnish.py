"""Varnish, which streams to clients that join, from memory."""

from __future__ import annotations

from bench.peers.peer import Launch, Seat, answer_of, installed
from bench.report import GIB, MIB

_VCL = """vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "%d"; }
"""
_PACKAGE = "varnish"


class Varnish:
    """One process that manages and one with threads that serves."""

    name = "varnish"
    title = "Varnish"
    settings = "`-s malloc,2g -p thread_pool_min=50`; streaming is its default"

    def version(self) -> str:
        """As varnishd says it."""
        said = answer_of(installed("varnishd", _PACKAGE), "-V")
        return said.partition("varnish-")[2].partition(" ")[0]

    def launches(self, seat: Seat) -> list[Launch]:
        """Varnishd in the foreground."""
        room = min(seat.room, 2 * GIB)
        command = [
            installed("varnishd", _PACKAGE),
            "-F",
            *("-j", "none"),
            *("-n", str(seat.folder / "work")),
            *("-a", f"127.0.0.1:{seat.port.number}"),
            *("-f", str(seat.write("blobs.vcl", _VCL % seat.origin))),
            *("-s", f"malloc,{room // MIB}m"),
            *("-p", "thread_pool_min=50"),
        ]
        return [Launch(command, seat.port)]
