"""The machine lacks something: a 503 with Retry-After on every path, and no traceback."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import psutil

from tests.registry.test_registry_faults import serve_manifest
from tests.support import registries
from tests.support.images import OCI_MANIFEST, image
from tests.support.interpreters import PATIENCE
from tests.support.origin import Origin
from tests.support.registries import Registry
from tests.support.roles import content
from tests.support.stores import digest

SIZE = 200_000
KEY = digest(300, SIZE)


def serve_all(origin: Origin, *names: str) -> str:
    """An image and a blob in each repository; the image's digest."""
    found = ""
    for name in names:
        text = image(301, [10]).manifest.decode()
        found = serve_manifest(origin, name, "v1", text, OCI_MANIFEST)
        origin.serve(f"/v2/{name}/blobs/{KEY}", seed=300, size=SIZE)
    return found


def routes(name: str, manifest: str) -> list[str]:
    blob, tag = f"/v2/{name}/blobs/{KEY}", f"/v2/{name}/manifests/v1"
    return [blob, tag, f"/v2/{name}/manifests/{manifest}", "/metrics", "/readyz"]


def check_unavailable(status: int, headers: dict[str, str], body: bytes, path: str) -> None:
    assert status == 503, (path, status, body)
    assert int(headers["retry-after"]) > 0
    if path.startswith("/v2/"):
        (error,) = json.loads(body)["errors"]
        assert error["code"] == "UNAVAILABLE"
        assert "upstream" not in error["message"], "it is this machine"


def test_a_store_that_is_gone(run_registry: registries.Run, origin: Origin) -> None:
    """What is here, what is in flight and what is absent; then the disk is back."""
    manifest = serve_all(origin, "gone/app", "gone/new")
    ours = run_registry(origin.url(""), workers=1)
    folder = Path(ours.store.folder)
    for path in routes("gone/app", manifest):
        assert ours.get(path).status == 200
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("no folder")
    try:
        for name in ("gone/app", "gone/new"):
            for path in routes(name, manifest):
                answer = ours.get(path)
                if path == "/metrics" and answer.status == 200:
                    continue  # what there is to tell
                check_unavailable(answer.status, answer.headers, answer.body, path)
        assert ours.get("/healthz").status == 200
        assert ours.get("/").status == 200
        assert ours.get("/v2/").status == 200
    finally:
        folder.unlink()
        aside.rename(folder)
    for path in routes("gone/new", manifest):
        assert ours.get(path).status == 200, path
    assert "Traceback" not in ours.serving.log


def test_no_descriptors(run_registry: registries.Run, origin: Origin) -> None:
    """A client that is connected already gets a 503, also for what is here."""
    manifest = serve_all(origin, "few/app", "few/new")
    ours = run_registry(origin.url(""), workers=1)
    for path in routes("few/app", manifest):
        assert ours.get(path).status == 200
    connection = HTTPConnection("127.0.0.1", ours.port, timeout=PATIENCE)
    [worker] = map(psutil.Process, ours.workers())
    soft, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
    for name in ("few/app", "few/new"):
        for path in routes(name, manifest):
            worker.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
            connection.request("GET", "/healthz")  # the connection is there, whatever happened
            connection.getresponse().read()
            used = [int(each) for each in os.listdir(f"/proc/{worker.pid}/fd")]
            lowest = next(each for each in range(len(used) + 1) if each not in used)
            worker.rlimit(psutil.RLIMIT_NOFILE, (lowest, hard))
            connection.request("GET", path)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            check_unavailable(response.status, headers, response.read(), path)
    worker.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    connection.close()
    for path in routes("few/new", manifest):
        assert ours.get(path).status == 200, path
    assert ours.get(f"/v2/few/app/blobs/{KEY}").body == content(300, SIZE)
    assert "Traceback" not in ours.serving.log


def test_control_characters_begin_no_line_of_the_log(ours: Registry, origin: Origin) -> None:
    path = f"/v2/log/app/blobs/{KEY}"
    origin.serve(path, status=500, headers={"X-A": "b"})
    answer = ours.get("/v2/fault.test/log/app/manifests/v1%0a2026-01-01%20ERROR%20%1b[2Jforged")
    assert answer.status == 404
    assert "\x1b" not in json.loads(answer.body)["errors"][0]["detail"]["tag"]
    assert ours.get(f"/v2/fault.test{path.removeprefix('/v2')}?x=%0aforged").status == 502
    assert "\x1b" not in ours.serving.log
    assert not any(line.startswith("forged") for line in ours.serving.log.splitlines())


def test_no_memory(run_registry: registries.Run, origin: Origin) -> None:
    """Many blobs at once under a limit of address space; threads need some of it, too."""
    paths = [f"/v2/memory/app/blobs/{digest(400 + number, SIZE)}" for number in range(60)]
    for number, path in enumerate(paths):
        origin.serve(path, seed=400 + number, size=SIZE, rate=400_000)
    ours = run_registry(origin.url(""), workers=1)
    [worker] = map(psutil.Process, ours.workers())
    before = worker.rlimit(psutil.RLIMIT_AS)
    limit = worker.memory_info().vms + (40 << 20)
    worker.rlimit(psutil.RLIMIT_AS, (limit, before[1]))
    with ThreadPoolExecutor(len(paths)) as pool:
        answers = [*pool.map(ours.get, paths)]
    for number, (path, answer) in enumerate(zip(paths, answers, strict=True)):
        if answer.status == 200:
            assert answer.body == content(400 + number, SIZE)
        else:
            check_unavailable(answer.status, answer.headers, answer.body, path)
    assert 503 in {answer.status for answer in answers}
    worker.rlimit(psutil.RLIMIT_AS, before)
    with ThreadPoolExecutor(len(paths)) as pool:
        for number, answer in enumerate(pool.map(ours.get, paths)):
            assert answer.body == content(400 + number, SIZE)
    assert "Traceback" not in ours.serving.log
