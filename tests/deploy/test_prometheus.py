"""A real Prometheus scrapes four workers; the alerts and the dashboard know the metrics."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.server import Port
from shmstream.registry.ops.metrics import METRICS
from tests.support.docker_registry import program
from tests.support.images import image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.quirks import Quirks, Reply, plain
from tests.support.serving import Serve

DEPLOY = Path(__file__).parents[2] / "deploy"
IMAGE = image(71, [4000])
MISSING = "/v2/a/b/blobs/sha256:" + "0" * 64


def known_names() -> set[str]:
    found = {each.name for each in METRICS}
    histograms = [each.name for each in METRICS if each.kind == "histogram"]
    return found | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}


def test_the_alerts(tmp_path: Path) -> None:
    promtool = program("promtool", "prometheus")
    folder = DEPLOY / "prometheus"
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=folder, capture_output=True, text=True, check=False,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_know_the_metrics() -> None:
    for file in ("prometheus/alerts.yml", "grafana.json"):
        text = (DEPLOY / file).read_text()
        named = set(re.findall(r"\bshmstream_\w+", text))
        assert named
        assert named <= known_names(), file
    shown = " ".join(expressions())
    missing = [each.name for each in METRICS if not re.search(rf"\b{each.name}(_bucket)?\b", shown)]
    assert missing == ["shmstream_build_info"], "a metric has a panel; this is asked for instances"
    board = json.loads((DEPLOY / "grafana.json").read_text())
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({each["id"] for each in board["panels"]}) == len(places)


def expressions() -> list[str]:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [each.replace("$instance", ".*").replace("$__rate_interval", "1m") for each in found]


def asker(port: int) -> Callable[[str], list[dict[str, Any]]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(query: str) -> list[dict[str, Any]]:
        told = urllib.parse.urlencode({"query": query})
        url = f"http://127.0.0.1:{port}/api/v1/query?{told}"
        with opener.open(url, timeout=PATIENCE) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    return ask


def test_a_real_prometheus(serve: Serve, quirks: Quirks, tmp_path: Path) -> None:
    quirks.script = plain(IMAGE)
    serving = serve("--workers", "4", upstream=f"docker.io={quirks.url}")
    for path in (f"/v2/docker.io/a/b/manifests/{IMAGE.digest}", f"{MISSING}?ns=docker.io"):
        serving.ask(path)
    quirks.script = lambda _: Reply(503)
    serving.ask("/v2/docker.io/a/b/tags/list")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 3s, scrape_timeout: 3s}\n"
        "scrape_configs:\n  - job_name: shmstream\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{serving.port}']}}]\n"
        f"rule_files: ['{DEPLOY / 'prometheus' / 'alerts.yml'}']\n"
    )
    with Port() as port:
        running = subprocess.Popen(
            [program("prometheus", "prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
             f"--storage.tsdb.path={tmp_path / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port.number}"],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ask = asker(port.number)

            def scraped() -> bool:
                try:
                    return bool(ask('up{job="shmstream"} == 1'))
                except OSError:
                    return False

            wait_until(scraped)

            def finds(query: str) -> None:
                # A worker counts a moment after it has answered, and a scrape that takes too long
                # hides what an earlier one has found.
                wait_until(lambda: bool(ask(query)))

            finds("shmstream_workers == 4")
            finds("shmstream_build_info == 1")
            finds('shmstream_upstream_up{upstream="docker.io"} == 0')
            finds('shmstream_upstream_bytes_total{upstream="docker.io"} > 0')
            finds("sum(shmstream_upstream_requests_total{outcome='refused'}) > 0")
            finds("sum(shmstream_upstream_requests_total{outcome='failed'}) > 0")
            finds(f"shmstream_process_resident_memory_bytes{{process='parent'}} > {1 << 20}")
            finds("shmstream_process_open_fds{process='workers'} > 8")
            finds("sum(shmstream_aborts_total) == 0")  # what is missing is no abort
            for each in expressions():
                ask(each)  # each of them is understood
        finally:
            running.terminate()
            running.wait(PATIENCE)
