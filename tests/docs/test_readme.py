"""The README's example is run, and is as short as it says."""

from __future__ import annotations

import ast
import http.client
import os
import re
import subprocess
import sys
from pathlib import Path

import shmstream
from bench.server import Port
from tests.support import roles
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_example_runs(tmp_path: Path, origin: Origin) -> None:
    """As it is, but for the URL."""
    program = EXAMPLES[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    assert README.index(program) < 1500, "on the first screen"
    data = roles.content(1, 300_000)
    url = origin.serve("/model.bin", seed=1, size=len(data))
    [there] = re.findall(r'"(https://[^"]+)"', program)
    (tmp_path / "example.py").write_text(program.replace(there, url), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMSTREAM_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = ast.literal_eval(done.stdout)
    assert {each for _, each in outcome} == {roles.sha256(data)}
    assert {role for role, _ in outcome} <= {"leads", "follows", "stored"}
    assert len(origin.requests("/model.bin")) == 1


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
    """They are absolute: PyPI shows the README, too."""
    ours = re.compile(
        r"https://(?:github\.com/shmstream/shmstream/blob|"
        r"raw\.githubusercontent\.com/shmstream/shmstream)/main/([^#]+)(?:#(.*))?"
    )
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    for target in links:
        assert target.startswith("https://"), target
        if (found := ours.fullmatch(target)) is not None:
            assert (ROOT / found[1]).exists(), target
            if found[2]:
                heads = re.findall(r"^#+ (.*)$", (ROOT / found[1]).read_text("utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in heads]
                assert found[2] in anchors, target


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
    with Port() as place:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *command.split(), "--port", str(place.number)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(place.is_served)
            connection = http.client.HTTPConnection("127.0.0.1", place.number, timeout=PATIENCE)
            for method, body in (("HEAD", b""), ("GET", data)):
                connection.request(method, f"/models/{name}")
                response = connection.getresponse()
                assert (response.status, response.read()) == (200, body)
                assert response.getheader("content-length") == str(len(data))
            connection.close()
            assert [each.method for each in origin.requests()] == ["HEAD", "GET"]
        finally:
            server.terminate()
            server.wait(PATIENCE)
    assert shmstream.Store(store).check() == []
