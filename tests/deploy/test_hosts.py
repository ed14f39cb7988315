"""`shmstream hosts`: clients are told of the registry, twice as once, and no longer."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.commands import PYTHON, ROOT
from tests.support.docker_registry import program
from tests.support.images import image
from tests.support.interpreters import PATIENCE
from tests.support.quirks import Quirks, plain
from tests.support.serving import Serve

IMAGE = image(91, [4000])


def hosts(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ["--containerd", str(folder / "certs.d"), "--podman", str(folder / "conf.d"),
              "--docker", str(folder / "daemon.json")]  # fmt: skip
    return subprocess.run(
        [*PYTHON, "-m", "shmstream", "hosts", *places, *arguments], cwd=ROOT, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


UPSTREAMS = ("--upstream", "docker.io", "--upstream", "ghcr.io=https://ghcr.example", "--upstream",
             "*")  # fmt: skip


def test_files_are_written_once_and_removed(tmp_path: Path) -> None:
    settings = {"log-level": "warn", "registry-mirrors": ["https://other"]}
    (tmp_path / "daemon.json").write_text(json.dumps(settings))
    (tmp_path / "certs.d").mkdir()
    first = hosts(tmp_path, *UPSTREAMS)
    assert (first.returncode, first.stderr) == (0, "")
    written = sorted(each for each in tmp_path.rglob("*") if each.is_file())
    assert sorted(map(Path, first.stdout.split())) == written
    assert len(written) == 5
    facts = {each: each.stat().st_ino for each in written}
    again = hosts(tmp_path, *UPSTREAMS)
    assert (again.returncode, again.stdout) == (0, "")
    assert {each: each.stat().st_ino for each in written} == facts
    told = tomllib.loads((tmp_path / "certs.d/docker.io/hosts.toml").read_text())
    assert told["server"] == "https://registry-1.docker.io"
    assert told["host"] == {"http://127.0.0.1:5000": {"capabilities": ["pull", "resolve"]}}
    assert "server" not in tomllib.loads((tmp_path / "certs.d/_default/hosts.toml").read_text())
    mirrors = json.loads((tmp_path / "daemon.json").read_text())["registry-mirrors"]
    assert mirrors == ["http://127.0.0.1:5000", "https://other"]
    removed = hosts(tmp_path, *UPSTREAMS, "--remove")
    assert removed.returncode == 0
    assert json.loads((tmp_path / "daemon.json").read_text()) == settings
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["daemon.json"]
    assert list((tmp_path / "certs.d").iterdir()) == []
    assert hosts(tmp_path, *UPSTREAMS, "--remove").stdout == ""


def test_files_of_others_stay(tmp_path: Path) -> None:
    mine = tmp_path / "certs.d/docker.io/hosts.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("server = 'https://mine'\n")
    (tmp_path / "daemon.json").write_text("no JSON")
    done = hosts(tmp_path, *UPSTREAMS)
    assert done.returncode == 1
    assert f"{mine} is there, and was not made by shmstream" in done.stderr
    assert "is not the JSON of dockerd's settings" in done.stderr
    assert (mine.read_text(), (tmp_path / "daemon.json").read_text()) == (
        "server = 'https://mine'\n", "no JSON",
    )  # fmt: skip
    hosts(tmp_path, *UPSTREAMS, "--remove")
    assert mine.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--upstream", "a/b"], "is no name of a registry"),
        (["--upstream", "docker.io", "--cache", "127.0.0.1:5000"], "is no URL of a registry"),
        (["--upstream", "ghcr.io"], "Docker has mirrors of Docker Hub only"),
        ([], "Missing option"),
    ],
)
def test_what_is_wrong(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = hosts(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_real_skopeo_reads_them(serve: Serve, quirks: Quirks, tmp_path: Path) -> None:
    quirks.script = plain(IMAGE)
    serving = serve("--workers", "1", upstream=f"r.example={quirks.url}")
    done = subprocess.run(
        [*PYTHON, "-m", "shmstream", "hosts", "--podman", str(tmp_path / "conf.d"), "--upstream",
         "r.example", "--cache", f"http://{serving.host}:{serving.port}"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    [path] = done.stdout.split()
    skopeo = [program("skopeo", "skopeo"), "--registries-conf", path, "copy",
              "docker://r.example/a/b:v1", f"dir:{tmp_path / 'copy'}"]  # fmt: skip
    subprocess.run(skopeo, check=True, capture_output=True, timeout=PATIENCE)
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == IMAGE.manifest
