"""Squid with two workers, which share a cache in memory."""

from __future__ import annotations

from bench.peers.peer import WORKERS, Launch, Seat, answer_of, installed
from bench.report import GIB, MIB

_CONFIGURATION = """
http_port 127.0.0.1:{port} accel defaultsite=blobs no-vhost
cache_peer 127.0.0.1 parent {origin} 0 no-query no-digest originserver name=origin
http_access allow all
workers {workers}
collapsed_forwarding on
memory_cache_shared on
memory_cache_mode always
cache_mem {room} MB
maximum_object_size_in_memory 1 GB
maximum_object_size 1 GB
quick_abort_min -1 KB
read_ahead_gap 1 MB
access_log none
cache_store_log none
cache_log {folder}/cache.log
pid_filename {folder}/squid.pid
coredump_dir {folder}
netdb_filename none
pinger_enable off
visible_hostname localhost
shutdown_lifetime 0 seconds
"""
_PACKAGE = "squid"


class Squid:
    """A master, a coordinator and the workers.

    Where they talk to each other was fixed when Squid was built, and is the same for every Squid of
    the machine; so this one has a /run/squid and a /dev/shm of its own.
    """

    name = "squid"
    title = "Squid"
    settings = (
        f"`workers {WORKERS}`, `collapsed_forwarding on`, `memory_cache_shared on`, "
        "`maximum_object_size_in_memory 1 GB`, `quick_abort_min -1 KB`, `read_ahead_gap 1 MB`"
    )

    def version(self) -> str:
        """As squid says it."""
        said = answer_of(installed("squid", _PACKAGE), "-v")
        return said.partition("Version ")[2].partition("\n")[0]

    def launches(self, seat: Seat) -> list[Launch]:
        """Squid in the foreground."""
        configuration = _CONFIGURATION.format(
            port=seat.port.number,
            origin=seat.origin,
            workers=WORKERS,
            room=min(seat.room, 2 * GIB) // MIB,
            folder=seat.folder,
        )
        path = seat.write("squid.conf", configuration)
        command = [installed("squid", _PACKAGE), "--foreground", "-n", "peer", "-f", str(path)]
        return [Launch(command, seat.port, disks={"/run/squid": MIB, "/dev/shm": 4 * GIB})]
