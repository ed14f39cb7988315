"""Each program in examples/ is run as its first lines tell."""

from __future__ import annotations

import ast
import http.client
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from bench.server import Port
from shmstream import Store
from shmstream.registry.settings import Settings
from tests.support import s3 as s3_server
from tests.support.cluster import Ports
from tests.support.interpreters import PATIENCE, Interpreter, wait_until
from tests.support.origin import Origin
from tests.support.redis import Redis
from tests.support.roles import content
from tests.support.s3 import S3
from tests.support.stores import digest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(each.name for each in EXAMPLES.glob("*.py"))


@pytest.fixture
def environment(folder: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "SHMSTREAM_STORE": folder,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]),
        "HOME": str(tmp_path),
    }


def run(environment: dict[str, str], name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def server(environment: dict[str, str], *command: str, **more: str) -> Iterator[None]:
    """A process that ends with the test."""
    with open(Path(environment["HOME"]) / f"{command[0]}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment | more,
            cwd=environment["HOME"],
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def get(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Connection": "close"})
    return connection.getresponse()


def answers(port: int) -> bool:
    try:
        get(port, "/nothing").close()
    except OSError:
        return False
    return True


def test_the_list_has_each_of_them() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| \[([\w.]+?)/?\]", listed, re.MULTILINE)
    assert sorted(named) == sorted([*PROGRAMS, "mirrors", "registry"])
    tests = Path(__file__).read_text(encoding="utf-8")
    for name in PROGRAMS:
        assert tests.count(name) + tests.count(f"{name[:-3]}:") + tests.count(f"{name[:-3]}.") >= 1
        told = ast.get_docstring(ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))) or ""
        assert "pip install" in told


def test_pandas(start: Callable[..., Interpreter], environment: dict[str, str]) -> None:
    """pandas_s3.py"""
    s3 = S3(start(s3_server.serve))
    for path, body in (("bucket", b""), ("bucket/table.csv", b"a,b\n" + b"1,2\n" * 1000)):
        url = f"{s3.options['endpoint_url']}/{path}"
        headers = {"Content-Type": "text/csv"}  # else it is taken for a form
        urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT")).close()
    keys = {
        "AWS_ENDPOINT_URL_S3": s3.options["endpoint_url"],
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    told = run(environment | keys, "pandas_s3.py", "s3://bucket/table.csv")
    assert told == f"{[1000] * 2}\n"
    assert len(s3.requests("GET", "/bucket/table.csv")) == 1


def test_the_hub(origin: Origin, environment: dict[str, str], tmp_path: Path) -> None:
    weights = save({"a": numpy.zeros((10, 20)), "b": numpy.zeros(5)})
    (tmp_path / "weights").write_bytes(weights)
    base = "/gpt/tiny/resolve/main"
    origin.serve(f"{base}/config.json", text='{"model_type": "gpt2"}')
    origin.serve(f"{base}/model.safetensors", text=weights.decode("latin-1"))
    assert weights.isascii(), "so that the origin can serve it as a text"
    told = environment | {"HF_ENDPOINT": origin.url("").rstrip("/"), "HF_TOKEN": "secret"}
    arguments = ("gpt/tiny", "model", "config.json", "model.safetensors")
    for _ in range(2):
        assert run(told, "hub_safetensors.py", *arguments) == "model.safetensors 205 parameters\n"
    assert json.loads((tmp_path / "model/config.json").read_text()) == {"model_type": "gpt2"}
    [request] = origin.requests(f"{base}/model.safetensors")
    assert request.headers["authorization"] == "Bearer secret"


def test_a_data_loader(origin: Origin, environment: dict[str, str]) -> None:
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number in range(50):
            entry = tarfile.TarInfo(f"{number}.txt")
            entry.size = 100
            tar.addfile(entry, io.BytesIO(b"x" * 100))
    urls = [origin.serve(f"/{n}.tar", text=shard.getvalue().decode("latin-1")) for n in range(3)]
    assert run(environment, "data_loader.py", *urls) == "150 samples\n150 samples\n"
    assert [len(origin.requests(f"/{n}.tar")) for n in range(3)] == [1, 1, 1]


def test_a_task_and_the_web(environment: dict[str, str], store: Store, tmp_path: Path) -> None:
    """task_and_web.tasks and task_and_web:web"""
    for name in ("queue", "processed"):
        (tmp_path / name).mkdir()
    options = {
        "data_folder_in": str(tmp_path / "queue"),
        "data_folder_out": str(tmp_path / "queue"),
        "control_folder": str(tmp_path / "processed"),
    }
    told = environment | {"BROKER": "filesystem://", "BROKER_OPTIONS": json.dumps(options)}
    worker = "celery -A task_and_web.tasks worker --pool solo --without-gossip --without-mingle"
    with Port() as port:
        web = f"uvicorn --port {port.number} --workers 2 task_and_web:web"
        with server(told, *worker.split()), server(told, *web.split()):
            wait_until(lambda: answers(port.number))
            clients = [get(port.number, "/reports/7") for _ in range(3)]  # before it is rendered
            for each in clients:
                assert each.status == 200
                assert each.getheader("content-type") == "text/csv"
                assert (
                    each.getheader("content-disposition") == 'attachment; filename="report-7.csv"'
                )
            expected = b"".join(b"7,%d\n" % row for row in range(50))
            assert [each.read() for each in clients] == [expected] * 3
            wait_until(lambda: "report 7" in store)


def test_flask(environment: dict[str, str], origin: Origin, store: Store) -> None:
    """flask_app:app"""
    url = origin.serve("/model.bin", seed=1, size=300_000)
    base = url.removesuffix("/model.bin")
    with Port() as port:
        command = f"gunicorn -k gthread -w 2 --threads 4 -b 127.0.0.1:{port.number} flask_app:app"
        with server(environment, *command.split(), ORIGIN=base):
            wait_until(lambda: answers(port.number))
            answer = get(port.number, "/models/model.bin")
            assert answer.read() == content(1, 300_000)
            assert answer.getheader("content-disposition") == 'attachment; filename="model.bin"'
            wait_until(lambda: url in store)


def test_many_hosts(
    environment: dict[str, str], origin: Origin, redis: Redis, tmp_path: Path
) -> None:
    """many_hosts.py: two hosts at once, and a third one when both have the file."""
    url, key = origin.serve("/model.bin", seed=1, size=3_000_000), digest(1, 3_000_000)
    told = environment | {"CLUSTER": redis.url, "SECRET": "x" * 32}
    with ExitStack() as stack:
        ports = Ports()
        stack.callback(ports.close)

        def begin(number: int) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, EXAMPLES / "many_hosts.py", ports.take(), key, url],
                env=told | {"SHMSTREAM_STORE": str(tmp_path / f"host-{number}")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            return process

        def hear(process: subprocess.Popen[str]) -> list[str]:
            assert process.stdout is not None
            return process.stdout.readline().split(" ", 2)

        both = [hear(each) for each in [begin(0), begin(1)]]
        every = [*both, hear(begin(2))]
        assert {read for read, *_ in every} == {key.removeprefix("sha256:")}
        assert sorted(int(count) for _, count, _ in every) == [0, 3_000_000, 3_000_000]
        assert every[2][1] == "3000000"
    assert len(origin.requests("/model.bin")) == 1


def test_a_registry(environment: dict[str, str], origin: Origin, tmp_path: Path) -> None:
    table: dict[str, Any] = tomllib.loads((EXAMPLES / "registry/shmstream.toml").read_text())
    settings = Settings.from_table(table | {"store": str(tmp_path / "other")})
    listen = f"http://{table['listen']}"
    for upstream in settings.upstreams:
        assert upstream.namespace is not None
        hosts = EXAMPLES / "registry" / upstream.namespace / "hosts.toml"
        told = tomllib.loads(hosts.read_text(encoding="utf-8"))
        assert told["server"] == upstream.url
        assert set(told["host"]) == {listen}
    key = digest(1, 300_000)
    origin.serve(f"/v2/library/busybox/blobs/{key}", seed=1, size=300_000)
    text = (EXAMPLES / "registry/shmstream.toml").read_text(encoding="utf-8")
    with Port() as port:
        for old, new in [
            (table["store"], environment["SHMSTREAM_STORE"]),
            (table["listen"], f"127.0.0.1:{port.number}"),
            ("https://registry-1.docker.io", origin.url("").rstrip("/")),
            ("workers = 4", "workers = 1"),
        ]:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "settings.toml").write_text(text)
        command = ("shmstream", "serve", "--config", str(tmp_path / "settings.toml"))
        with server(environment, *command):
            wait_until(lambda: answers(port.number))
            answer = get(port.number, f"/v2/library/busybox/blobs/{key}?ns=docker.io")
            assert answer.read() == content(1, 300_000)
