"""`shmstream serve` as nodes of a cluster: one pull of a blob, and each client's own permission."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import SECRET, Ports
from tests.support.commands import PYTHON
from tests.support.docker_registry import DockerRegistry
from tests.support.images import image
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.redis import Redis
from tests.support.registries import has_image, skopeo, succeeds
from tests.support.roles import content
from tests.support.serving import Answer, Serving
from tests.support.stores import digest

SIZE = 2_000_000
KEY = digest(1, SIZE)
OURS, THEIRS = f"/v2/ours/blobs/{KEY}", f"/v2/theirs/blobs/{KEY}"


@contextmanager
def serving(folder: Path, redis: Redis, upstream: str, *second: str) -> Iterator[list[Serving]]:
    """Two registries of one cluster, each with two workers; options for the `second` one."""
    ports = Ports()
    secret = folder / "secret"
    secret.write_text(SECRET)
    with ExitStack() as closing:
        closing.callback(ports.close)
        made = []
        for number in range(2):
            place = folder / f"node{number}"
            place.mkdir()
            options = ["--cluster", redis.url, "--cluster-secret-file", str(secret)]
            options += ["--advertise", ports.take()]
            node = Serving(place, *options, *(second if number else ()), upstream=upstream)
            closing.callback(node.close)
            made.append(node)
        for each in made:
            wait_until(lambda each=each: each.ask("/healthz").status == 200)  # type: ignore[misc]
        yield made


@pytest.fixture
def two(tmp_path: Path, redis: Redis, origin: Origin) -> Iterator[list[Serving]]:
    """In front of the origin."""
    with serving(tmp_path, redis, origin.url("").rstrip("/")) as made:
        yield made


def together(two: list[Serving], *paths: str) -> list[Answer]:
    """What the nodes answer, each to one client for each path, all at the same time."""
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda n=node, p=path: answers.append(n.ask(p)))
        for node in two
        for path in paths
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return answers


def test_one_pull_and_each_client_is_admitted_by_the_upstream(
    two: list[Serving], origin: Origin
) -> None:
    origin.serve(OURS, seed=1, size=SIZE, rate=4_000_000)
    origin.serve(THEIRS, status=404)
    answers = together(two, OURS, OURS, OURS)
    assert [each.status for each in answers] == [200] * 6
    assert {each.body for each in answers} == {content(1, SIZE)}
    asked = [each.method for each in origin.requests(OURS)]
    assert asked.count("GET") == 1
    assert asked.count("HEAD") >= 1  # the node that did not pull asked for its own clients
    # A node counts a moment after its clients have it all, and tells of its children even later.
    for what in ("upstream", "peer", "given"):
        wait_until(lambda name=f"shmstream_{what}_bytes_total": total(two, name) == SIZE)  # type: ignore[misc]
    wait_until(lambda: total(two, "shmstream_children") == 0)
    assert all(each.metric("shmstream_directory_calls_total") > 0 for each in two)
    assert all(each.metric("shmstream_directory_failures_total") == 0 for each in two)
    told = [_snapshot(each)["cluster"] for each in two]
    assert sum(each["given"] for each in told) == sum(each["from_peers"] for each in told) == SIZE
    assert [each["trouble"] for each in told] == ["", ""]
    # The bytes are on both nodes, and yet no client of another repository gets them.
    for each in two:
        refused = each.ask(THEIRS)
        assert refused.status == 404
        assert content(1, SIZE)[:1000] not in refused.body


def total(nodes: list[Serving], name: str) -> float:
    """The sum of a metric over these nodes."""
    return sum(each.metric(name) for each in nodes)


def _snapshot(node: Serving) -> dict[str, Any]:
    """The first facts for the status page."""
    connection, response = node.open("/events")
    try:
        for line in response:
            if line.startswith(b"data: "):
                return dict(json.loads(line.removeprefix(b"data: ")))
    finally:
        connection.close()
    raise AssertionError("no snapshot")


def test_a_node_without_room_gives_what_a_node_has_and_asks_for_each_client(
    tmp_path: Path, redis: Redis, origin: Origin
) -> None:
    """What peers have goes to no client that the upstream has not admitted."""
    origin.serve(OURS, seed=1, size=SIZE)
    origin.serve(THEIRS, status=404)
    upstream = origin.url("").rstrip("/")
    with serving(tmp_path, redis, upstream, "--max-bytes", "1MiB") as (roomy, small):
        assert roomy.ask(OURS).body == content(1, SIZE)
        refused = small.ask(THEIRS)
        assert refused.status == 404
        assert content(1, SIZE)[:1000] not in refused.body
        answer = small.ask(OURS)
        assert answer.status == 200
        assert answer.body == content(1, SIZE)
        wait_until(lambda: small.metric("shmstream_passed_through_total") == 1)
        wait_until(lambda: small.metric("shmstream_peer_bytes_total") >= SIZE)
        asked = [each.method for each in origin.requests(OURS)]
        assert "HEAD" in asked  # for the client of the node that has got it from the other one


def test_real_clients_pull_an_image_through_two_nodes(
    tmp_path: Path, redis: Redis, docker_registry: DockerRegistry
) -> None:
    """The nodes' clients get every layer, and the upstream gives each of them once."""
    pushed = docker_registry.push("cluster/app", "v1", image(71, [900_000, 1_300_000]))
    docker_registry.reset()
    with serving(tmp_path, redis, docker_registry.url) as nodes:
        clients = {
            tmp_path / f"copy{node}-{client}": nodes[node] for node in (0, 1) for client in "ab"
        }
        running = [
            skopeo("cluster/app:v1", f"{node.host}:{node.port}", folder)
            for folder, node in clients.items()
        ]
        for each in running:
            succeeds(each)
        wait_until(lambda: total(nodes, "shmstream_given_bytes_total") > 2_200_000)
    assert all(has_image(folder, pushed.layers) for folder in clients)
    wait_until(lambda: len(docker_registry.requests("GET", "/blobs/")) >= len(pushed.blobs))
    asked = [each.path for each in docker_registry.requests("GET", "/blobs/")]
    assert len(asked) == len(set(asked)) == len(pushed.blobs)


def test_what_the_command_line_refuses(tmp_path: Path) -> None:
    for options, told in (
        (["--cluster", "redis://x"], "advertise and secret_file"),
        (["--advertise", "x:1"], "url, advertise and secret_file"),
        (
            ["--cluster", "redis://x", "--advertise", "x:1", "--cluster-secret-file", "/no/such"],
            "/no/such cannot be read",
        ),
    ):
        done = subprocess.run(
            [
                *PYTHON,
                "-m",
                "shmstream",
                "serve",
                "--upstream",
                "http://x",
                "--store",
                str(tmp_path / "store"),
                *options,
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode != 0
        assert told in " ".join(done.stderr.split())
