"""The README's example is run, and is as short as it says."""

from __future__ import annotations

import http.client
import io
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import shmstream
from shmstream.sources.http import close_pools
from tests.support import roles
from tests.support.interpreters import wait_until
from tests.support.origin import Origin

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_example_runs(tmp_path: Path, origin: Origin) -> None:
    data = roles.content(1, 300_000)
    url = origin.serve("/model.bin", seed=1, size=len(data))
    program = (
        EXAMPLES[0]
        .replace("/var/cache/blobs", str(tmp_path / "store"))
        .replace("sha256:...", f"sha256:{roles.sha256(data)}")
        .replace("https://host/model.bin", url)
    )
    names: dict[str, Any] = {"Store": shmstream.Store, "shutil": shutil, "out": io.BytesIO()}
    exec(program, names)
    assert names["out"].getvalue() == data
    assert Path(names["path"]).read_bytes() == data
    assert len(origin.requests("/model.bin")) == 1
    close_pools()


def test_the_second_example_runs(tmp_path: Path) -> None:
    program = EXAMPLES[1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    (tmp_path / "example.py").write_text(program, encoding="utf-8")
    (tmp_path / "big.bin").write_bytes(roles.content(1, 5_000_000))
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # four processes share the output, and a line of one may come between text and end of another
    assert done.stdout.replace("\n", "") == "5000000" * 4
    assert (tmp_path / "copy.bin").read_bytes() == roles.content(1, 5_000_000)


def test_the_other_examples_use_what_there_is() -> None:
    for example in EXAMPLES[2:]:
        compile(example, "README", "exec")
        for method in re.findall(r"blob\.(\w+)\(", example):
            owner = shmstream.BlobStreamer if "create(" in example else shmstream.InFlightCopier
            assert hasattr(owner, method), method


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_errors_it_names_exist() -> None:
    table = README[README.index("## When things go wrong") : README.index("## Reading the source")]
    for name in re.findall(r"`([A-Z]\w+)`", table):
        assert hasattr(shmstream, name), name


def test_the_application_of_the_docs_runs(tmp_path: Path, origin: Origin) -> None:
    """docs/serving.md: FastAPI, served by the very command that stands there, but for a port."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    [program, *_] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    data = roles.content(1, 300_000)
    name = roles.sha256(data)
    url = origin.serve(f"/models/{name}", seed=1, size=len(data))
    store = tmp_path / "store"
    program = program.replace("/var/cache/blobs", str(store)).replace(
        "https://host", url.partition("/models/")[0]
    )
    (tmp_path / "app.py").write_text(program, encoding="utf-8")
    [command] = re.findall(r"^uvicorn (.*)$", text, re.MULTILINE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *command.split(), "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _listens(port))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for method, body in (("HEAD", b""), ("GET", data)):
            connection.request(method, f"/models/{name}")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, body)
            assert response.getheader("content-length") == str(len(data))
        connection.close()
        assert [each.method for each in origin.requests()] == ["HEAD", "GET"]
    finally:
        server.terminate()
        server.wait(30)
    assert shmstream.Store(store).check() == []


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
