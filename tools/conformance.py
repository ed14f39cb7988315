"""The OCI's conformance suite against docker-registry alone, and through `shmstream serve`.

    python -m tools.conformance SUITE [--results FOLDER]

SUITE is the program that `go build` makes in the folder `conformance` of the distribution
specification (https://github.com/opencontainers/distribution-spec). Two registries with nothing in
them are started, on free ports of 127.0.0.1; nginx stands before the second one, and sends GETs and
HEADs to shmstream, whose upstream that registry is, and what pushes straight to the registry. The
suite runs against both, without its tests of deleting, and the results are compared, test by test.

The exit code is 1 if a test passes alone, and fails through shmstream. Needs Debian's
`docker-registry` and `nginx`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError

from bench import nginx

_PATIENCE = 60.0  # s
_RESULT = re.compile(r" *(OCI Conformance Test/.*): (Pass|FAIL|Skip|Disabled|Error|Unknown)$")
_BAD = ("FAIL", "Error")
_NOT_TESTED = (
    "API_BLOBS_DELETE", "API_MANIFESTS_DELETE", "API_TAGS_DELETE",
    "API_BLOBS_ATOMIC", "API_MANIFESTS_ATOMIC", "API_TAGS_ATOMIC",
)  # fmt: skip
_REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}"}}
validation: {{manifests: {{urls: {{allow: [".*"]}}}}}}
"""
_NGINX = """
    access_log off;
    client_max_body_size 0;
    map $request_method $backend {{
        GET 127.0.0.1:{ours};
        HEAD 127.0.0.1:{ours};
        default 127.0.0.1:{theirs};
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://$backend;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
"""

Results = dict[str, Counter[str]]
"""By the name of a test, how it ended. Several tests have one name, and come in any order."""


def main() -> int:
    """Run the suite twice, and print the comparison; the exit code."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="the program of the suite")
    parser.add_argument("--results", type=Path, help="folder for the reports of the suite")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shmstream-conformance-") as made, ExitStack() as undo:
        folder = Path(made)
        results = chosen.results or folder / "results"
        first, second, ours, front = _free_ports(4)
        for name, port in (("alone", first), ("behind", second)):
            (place := folder / name).mkdir()
            config = place / "config.yml"
            config.write_text(_REGISTRY.format(folder=place, port=port), encoding="utf-8")
            _start(undo, port, "docker-registry", "serve", config)
        upstream = f"http://127.0.0.1:{second}"
        _start(
            undo, ours, sys.executable, "-m", "shmstream", "serve", "--upstream", upstream,
            "--store", folder / "store", "--listen", f"127.0.0.1:{ours}", "--tag-ttl", "0s",
            "--workers", "2",
        )  # fmt: skip
        http = _NGINX.format(ours=ours, theirs=second, port=front)
        _start(undo, front, *nginx.command(folder, http))
        alone = _run(chosen.suite.resolve(), first, results / "alone")
        through = _run(chosen.suite.resolve(), front, results / "through")
    return _compare(alone, through)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(undo: ExitStack, port: int, *command: object) -> None:
    """Start a server, and wait until it answers; it ends with `undo`."""
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    undo.callback(process.wait)
    undo.callback(process.send_signal, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=_PATIENCE):
                return
        except HTTPError:
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"does not answer: {' '.join(map(str, command))}") from None
            time.sleep(0.1)


def _run(suite: Path, port: int, results: Path) -> Results:
    """How the tests end against the registry at this port."""
    results.mkdir(parents=True)
    settings = {
        "OCI_VERSION": "1.1",
        "OCI_TLS": "disabled",
        "OCI_REGISTRY": f"127.0.0.1:{port}",
        "OCI_RESULTS_DIR": str(results),
        **{f"OCI_{name}": "false" for name in _NOT_TESTED},
    }
    environment = {**os.environ, **settings}
    done = subprocess.run([suite], cwd=results, env=environment, capture_output=True, check=False)
    return _read(done.stdout.decode())


def _read(told: str) -> Results:
    ends = [found.groups() for found in map(_RESULT.match, told.splitlines()) if found is not None]
    groups = {name.rpartition("/")[0] for name, _ in ends}
    parents = {name for name, _ in ends if name in groups}
    found: Results = defaultdict(Counter)
    for name, end in ends:
        if name not in parents:
            found[name.removeprefix("OCI Conformance Test/")][end] += 1
    return found


def _compare(alone: Results, through: Results) -> int:
    for title, results in (("alone", alone), ("through shmstream", through)):
        total = sum(results.values(), Counter())
        ends = ", ".join(f"{count} {end}" for end, count in sorted(total.items()))
        print(f"{title}: {total.total()} tests: {ends}")
    worse = 0
    for name in sorted(set(alone) | set(through)):
        one, other = alone.get(name, Counter()), through.get(name, Counter())
        if one != other:
            is_worse = one["Pass"] > other["Pass"] or _failed(other) > _failed(one)
            worse += is_worse
            print(f"{'WORSE' if is_worse else 'other'}: {name}: {dict(one)}, {dict(other)}")
    print(f"{worse} of the names are worse through shmstream")
    return 1 if worse or not alone else 0


def _failed(ends: Mapping[str, int]) -> int:
    return sum(ends.get(each, 0) for each in _BAD)


if __name__ == "__main__":
    sys.exit(main())
