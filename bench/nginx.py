"""nginx, started in one way wherever it is wanted: as an origin, as a peer, in front of shmstream.

    command = nginx.command(folder, "server { ... }")      writes the configuration into `folder`
    with Server(command, port, folder / "said"): ...

All its files lie in `folder`. It stays in the foreground, so that it can be ended as `Server` ends
programs.
"""

from __future__ import annotations

from pathlib import Path

from bench.server import NotServing, find_program

PACKAGE = "nginx-light"
"""What Debian calls it."""

_CONFIGURATION = """
daemon off;
{main}
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections {connections}; }}
http {{
    client_body_temp_path {folder}/temp;
    proxy_temp_path {folder}/temp;
    fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp;
    scgi_temp_path {folder}/temp;
    {http}
}}
"""
_ONE_PROCESS = "master_process off;"  # so there is one to end, and to ask for its CPU time


def command(
    folder: Path, http: str, *, main: str = _ONE_PROCESS, connections: int = 512
) -> list[str]:
    """Write the configuration; the command that starts nginx.

    Args:
        folder: for all its files.
        http: what stands in the block `http`.
        main: what stands outside of all blocks; left out, nginx is one process.
        connections: that a worker has at most.

    Raises:
        NotServing: nginx is not installed.
    """
    program = find_program("nginx")
    if program is None:
        raise NotServing(f"nginx is not installed: apt-get install {PACKAGE}")
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(folder=folder, main=main, connections=connections, http=http),
        encoding="utf-8",
    )
    errors = folder / "error.log"
    return [program, "-p", str(folder), "-c", str(configuration), "-e", str(errors)]
