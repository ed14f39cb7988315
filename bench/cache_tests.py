"""The mirror of kind `http` before http-tests/cache-tests, which looks at what a cache does.

    git clone https://github.com/http-tests/cache-tests && (cd cache-tests && npm install)
    python -m bench.cache_tests cache-tests [--docs FILE] [--dir FOLDER]

It needs Node.js. The suite's server is the origin, `shmstream serve` is before it, and the suite's
client asks that. Our results stand beside those of other caches that the repository has; nothing is
measured. What did not pass is printed. `--docs` writes the table into that page, between its marks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.page import write
from bench.report import CheckFailed, progress
from bench.server import NotServing, Port, Server, find_program
from shmstream import __version__

NAMES = {
    "ours": "**shmstream**",
    "apache": "Apache httpd",
    "varnish": "Varnish",
    "squid": "Squid",
    "trafficserver": "Apache Traffic Server",
    "nginx": "nginx",
}
"""Caches for servers, as the table names them, by the file of their results."""
_PATIENCE = 1200.0  # s
_ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the suite, print the table, write the page; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path)
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table into this page")
    parser.add_argument("--dir", type=Path, help="folder for the files (the temp folder)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shmstream-bench-", dir=chosen.dir) as folder:
        try:
            told = _told(chosen.suite.resolve(), Path(folder))
        except (CheckFailed, NotServing) as error:
            progress(f"failed: {error}")
            return 1
    for kind, each in told["ours"].items():
        progress(f"{kind}, not passed: {', '.join(each['failed'])}")
    text = page(told, json.loads((chosen.suite / "package.json").read_text("utf-8"))["version"])
    print(text)
    if chosen.docs is not None:
        write(chosen.docs, "bench.cache_tests", text)
    return 0


def _told(suite: Path, folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What bench/cache_tests.mjs prints.

    Raises:
        CheckFailed: there is no Node.js, or the suite does not run.
        NotServing: a server does not start.
    """
    if find_program("node") is None:
        raise CheckFailed("node is not installed: apt-get install nodejs")
    with ExitStack() as open_:
        origin, mirror = (open_.enter_context(Port()) for _ in range(2))
        url = f"http://127.0.0.1:{origin.number}"
        environment = {
            "npm_config_protocol": "http",
            "npm_config_port": str(origin.number),
            "npm_config_pidfile": str(folder / "pid"),
        }
        server = ["node", str(suite / "test-engine/server/server.mjs")]
        open_.enter_context(Server(server, origin, folder / "origin", environment))
        settings = folder / "settings.toml"
        settings.write_text(
            f'store = "{folder}/store"\n'
            f'[[mirror]]\npath = "/suite"\nkind = "http"\nurl = "{url}"\n',
            encoding="utf-8",
        )
        serve = [sys.executable, "-m", "shmstream", "serve", "--config", str(settings)]
        serve += ["--listen", f"127.0.0.1:{mirror.number}"]
        pythonpath = {"PYTHONPATH": str(_ROOT)}
        open_.enter_context(Server(serve, mirror, folder / "mirror", pythonpath))
        client = str(Path(__file__).with_suffix(".mjs"))
        base = f"http://127.0.0.1:{mirror.number}/suite"
        done = subprocess.run(
            ["node", "--no-warnings", client, str(suite), base, url],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    if done.returncode:
        raise CheckFailed(f"the suite does not run: {done.stderr[-2000:]}")
    told: dict[str, dict[str, dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return told


def page(told: dict[str, dict[str, dict[str, Any]]], version: str) -> str:
    """The table, the best first behind ours, with the versions under it."""
    required, optimal = (told["ours"][kind]["of"] for kind in ("required", "optimal"))
    lines = [f"| | required tests passed, of {required} | optimal, of {optimal} |"]
    lines.append("| --- | ---: | ---: |")
    others = [name for name in NAMES if name in told and name != "ours"]
    others.sort(key=lambda name: -int(told[name]["required"]["passed"]))
    for name in ["ours", *others]:
        counts = [told[name][kind]["passed"] for kind in ("required", "optimal")]
        lines.append(f"| {NAMES[name]} | {counts[0]} | {counts[1]} |")
    lines += ["", f"The suite {version}, shmstream {__version__}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
