"""Apache Traffic Server, which streams to clients that join, from a file that is its disk."""

from __future__ import annotations

from bench.peers.peer import WORKERS, Launch, Seat, answer_of, installed
from bench.report import GIB

_RECORDS = {
    "http.server_ports": "STRING {port}:ip-in=127.0.0.1",
    "exec_thread.autoconfig": "INT 0",
    "exec_thread.limit": f"INT {WORKERS}",
    "admin.user_id": "STRING nobody",
    "log.logging_enabled": "INT 0",
    "http.cache.required_headers": "INT 0",
    "http.cache.open_write_fail_action": "INT 5",
    "cache.max_doc_size": "INT 0",
    "cache.enable_read_while_writer": "INT 1",
    "cache.read_while_writer.max_retries": "INT 100",
    "cache.read_while_writer_retry.delay": "INT 20",
    "http.background_fill_active_timeout": "INT 0",
    "http.background_fill_completed_threshold": "FLOAT 0.0",
    "cache.ram_cache.size": "INT 256M",
}
_EMPTY = ("cache", "hosting", "parent", "plugin", "socks", "splitdns", "ssl_multicert", "volume")
_ALLOW = """ip_allow:
  - apply: in
    ip_addrs: 127.0.0.1
    action: allow
    methods: ALL
"""
_PACKAGE = "trafficserver"
_DISK = 2 * GIB


class TrafficServer:
    """One process with threads. Debian's is told by a runroot.yaml where everything is."""

    name = "ats"
    title = "Traffic Server"
    settings = (
        "`http.cache.open_write_fail_action 5`, `cache.max_doc_size 0`, `background_fill_* 0`, "
        "`read_while_writer.max_retries 100`, `read_while_writer_retry.delay 20`, "
        f"{WORKERS} threads, a storage of 2 GiB"
    )

    def version(self) -> str:
        """As traffic_server says it."""
        said = answer_of(installed("traffic_server", _PACKAGE), "-V")
        return said.removeprefix("Traffic Server ").partition(" ")[0]

    def launches(self, seat: Seat) -> list[Launch]:
        """traffic_server without its manager."""
        program = installed("traffic_server", _PACKAGE)
        runroot = {
            "prefix": seat.folder,
            "exec_prefix": "/usr",
            "bindir": "/usr/bin",
            "sbindir": "/usr/bin",
            "sysconfdir": seat.mkdir("etc"),
            "datadir": seat.mkdir("data"),
            "includedir": "/usr/include",
            "libdir": "/usr/lib/trafficserver",
            "libexecdir": "/usr/lib/trafficserver/modules",
            "localstatedir": seat.mkdir("state"),
            "runtimedir": seat.mkdir("run"),
            "logdir": seat.mkdir("log"),
            "cachedir": (cache := seat.mkdir("cache")),
        }
        records = "".join(
            f"CONFIG proxy.config.{name} {value}\n" for name, value in _RECORDS.items()
        )
        for name in _EMPTY:
            seat.write(f"etc/{name}.config", "")
        seat.write("etc/logging.yaml", "")
        seat.write("etc/sni.yaml", "")
        seat.write("etc/strategies.yaml", "")
        seat.write("etc/ip_allow.yaml", _ALLOW)
        seat.write("etc/records.config", records.format(port=seat.port.number))
        seat.write("etc/remap.config", f"map / http://127.0.0.1:{seat.origin}/\n")
        seat.write("etc/storage.config", f"{cache} {min(seat.room, _DISK)}\n")
        told = "".join(f"{name}: {folder}\n" for name, folder in runroot.items())
        path = seat.write("runroot.yaml", told)
        return [Launch([program, f"--run-root={path}"], seat.port)]
