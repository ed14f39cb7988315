"""From nothing to a cache: each page is followed word for word, on a machine with nothing on it.

`tests.support.sandbox` makes the machine. pip, useradd, podman, skopeo and containerd are the real
ones. systemd and Kubernetes are not: `tests/support/stand_ins` and `tests.support.node` say what
runs in their place.

    make image      the page about Kubernetes, with a base of Debian's packages: a Python of
                    another version, its wheels from PyPI. Else the base is this machine's system.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmstream.registry.settings import Settings
from tests.support.image_base import debian_base, host_base
from tests.support.images import digest_of, image
from tests.support.package_index import wheel
from tests.support.programs import program
from tests.support.sandbox import LONGEST, Machine
from tests.support.wheels import add_our_wheel, add_wheel, make_index, requirements
from tests.support.zygote import ROOT

pytestmark = pytest.mark.timeout(2 * LONGEST)
DOCS = ROOT / "docs"
ALPINE = image(92, [300_000])
PAGES = ("systemd.md", "kubernetes.md", "ci.md", "moving.md")


@pytest.fixture
def machine(tmp_path: Path, direct: None) -> Iterator[Machine]:  # noqa: ARG001
    found = Machine(tmp_path)
    found.registry.push("library/alpine", "3", ALPINE)
    found.registry.reset()
    yield found
    found.close()


def blocks(page: str, to: str = "") -> list[tuple[str, str]]:
    """The kind and the text of each block of a page, as far as the heading `to`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if to:
        text, heading, _ = text.partition(f"\n## {to}")
        assert heading
    found: list[tuple[str, str]] = re.findall(
        r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    assert text.count("```") == 2 * len(found), "each block says what it is"
    return found


def script(page: str, *after: tuple[str, str], to: str = "") -> str:
    """All that a page says to do, as far as `to`. A file names itself in its first line.

    `after`: a command of the page, and what is done behind its block, to look.
    """
    told = []
    looks = dict(after)
    for kind, text in blocks(page, to):
        if kind == "sh":
            told.append(text)
            told += [looks.pop(each) for each in list(looks) if each in text]
        elif (file := re.match(r"# (\S+)\n", text)) is not None:
            told.append(f"printf %s {shlex.quote(text)} >{file[1]}")
    assert not looks
    return "\n".join(told)


def came_once(machine: Machine) -> bool:
    """Whether the upstream gave each blob once."""
    return all(
        len(machine.registry.requests("GET", f"alpine/blobs/{digest_of(each)}")) == 1
        for each in ALPINE.blobs
    )


def has_alpine(folder: Path) -> bool:
    return {digest_of(it)[7:] for it in ALPINE.blobs} <= {it.name for it in folder.iterdir()}


def files_in(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def install_from_here(machine: Machine) -> None:
    make_index(machine.path("index"), requirements("cli", "serve"))
    add_our_wheel(machine.path("index"))


def test_systemd(machine: Machine) -> None:
    install_from_here(machine)
    before = files_in(machine.path("etc"))
    look = "stat --format '%U %a' /var/cache/shmstream/blobs >/home/store"
    said = machine.run(script("systemd.md", ("alpine-again", look)))
    assert has_alpine(machine.path("home/alpine"))
    assert has_alpine(machine.path("home/alpine-again"))
    assert came_once(machine)
    assert machine.path("home/store").read_text() == "shmstream 700\n"
    assert re.search(r"^shmstream_commits_total\S* [1-9]", said, re.MULTILINE)
    log = machine.path("var/log/shmstream").read_text()
    assert "SIGHUP: other workers replace these" in log
    assert "Traceback" not in log
    new = files_in(machine.path("etc")) - before
    accounts = {"passwd", "group", "shadow", "gshadow", "subuid", "subgid"}
    left = {each for each in new if each.rstrip("-") not in accounts and each != ".pwd.lock"}
    assert left == {"shmstream.toml", "systemd/system/shmstream.service"}
    assert not machine.path("var/cache/shmstream").exists()
    [unit] = [text for kind, text in blocks("systemd.md") if kind == "ini"]
    operations = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert unit.partition("\n")[2] in operations, "the same unit on both pages"


PULL = "skopeo copy docker://docker.io/library/alpine:3 dir:"


def test_moving_a_store(machine: Machine) -> None:
    """Whatever is done with the store, each blob comes from the upstream once."""
    install_from_here(machine)
    begin = script("systemd.md", to="5. Later")
    looks = (
        ("rm -r /var/cache/shmstream", f"{PULL}moved"),
        ("tar --extract", f"{PULL}restored"),
        ("--upgrade", f"{PULL}upgraded"),
    )
    machine.run(begin + "\n" + script("moving.md", *looks))
    for name in ("moved", "restored", "upgraded"):
        assert has_alpine(machine.path("home", name)), name
    assert came_once(machine)
    assert has_alpine(machine.path("var/lib/shmstream/blobs/sha256"))
    assert machine.path("var/backups/shmstream.tar").stat().st_mode & 0o077 == 0
    log = machine.path("var/log/shmstream").read_text()
    assert "SIGHUP: other workers replace these" in log
    assert "Traceback" not in log


def test_a_ci_runner(machine: Machine) -> None:
    install_from_here(machine)
    data = wheel("some-package", "1.0")
    file = "some_package-1.0-py3-none-any.whl"
    add_wheel(machine.path("index"), file, data)
    machine.stand_in("pip", f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')  # of a job
    machine.run(script("ci.md"))
    assert machine.path("home", file).read_bytes() == data
    assert has_alpine(machine.path("home/alpine"))
    kept = machine.path("home/.shmstream/store/blobs/sha256")
    wanted = {digest_of(each)[7:] for each in (data, *ALPINE.blobs)}
    assert wanted <= {each.name for each in kept.iterdir()}
    assert "Traceback" not in machine.path("home/shmstream.log").read_text()


NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "__pycache__", "bench", "site")
NODE = """
printf '%s\\n' 'version = 2' 'disabled_plugins = ["io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]' >/run/containerd.toml
containerd --config /run/containerd.toml >/var/log/containerd 2>&1 &
until ctr version; do sleep 0.1; done
"""
LOOK = """
podman exec shmstream python -c "import json, os; shm = os.statvfs('/dev/shm'); print(json.dumps(
    [os.getuid(), os.getgid(), shm.f_blocks * shm.f_frsize, os.access('/', os.W_OK)]))" \\
    >/home/inside
podman image inspect registry.example.com/shmstream:latest >/home/image
cp -r /etc/containerd/certs.d /home
ls -ld --numeric-uid-gid /var/lib/shmstream
"""


def test_kubernetes(machine: Machine) -> None:
    """It builds the image of deploy/Containerfile, pushes it, and runs it as the DaemonSet does."""
    make = debian_base if os.environ.get("SHMSTREAM_IMAGE_BASE") == "debian" else host_base
    known = make(machine)
    shutil.copytree(ROOT, machine.path("home/source"), ignore=NOT_COPIED)
    kubectl = program("kubectl", "kubernetes-client")
    begin = f"export KUBECTL={kubectl} BUILDAH_ISOLATION=chroot\n{known}\n"
    begin += f"{NODE}\ncd /home/source\n"
    said = machine.run(begin + script("kubernetes.md", ("rollout status", LOOK)))
    user, group, size, may_write = json.loads(machine.path("home/inside").read_text())
    assert (user, group, size, may_write) == (65532, 65532, 128 << 20, False)
    [facts] = json.loads(machine.path("home/image").read_text())
    assert facts["User"] == "65532:65532"
    assert files_in(machine.path("home/certs.d")) == {
        f"{each}/hosts.toml" for each in ("docker.io", "ghcr.io", "registry.k8s.io")
    }
    assert files_in(machine.path("etc/containerd/certs.d")) == set()
    assert re.search(r"^drwx------ \d+ 65532 65532 .* /var/lib/shmstream$", said, re.MULTILINE)
    assert came_once(machine)
    content = machine.path("var/lib/containerd/io.containerd.content.v1.content/blobs/sha256")
    assert has_alpine(content)
    assert has_alpine(machine.path("var/lib/shmstream/blobs/sha256"))
    assert re.search(r"^shmstream_commits_total\S* [1-9]", said, re.MULTILINE)
    assert "Traceback" not in said


def test_settings_of_the_pages_are_valid(tmp_path: Path) -> None:
    for page in ("systemd.md", "ci.md"):
        [settings] = [text for kind, text in blocks(page) if kind == "toml"]
        (tmp_path / "file").write_text(settings)
        assert Settings.from_file(str(tmp_path / "file")).upstreams


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (DOCS / target).exists(), target
