"""A machine with nothing on it, for tests that do what an administrator does: bubblewrap makes it.

    machine = Machine(folder)
    machine.run("python3 -m venv /opt/shmstream")       as root, in bash

It has the programs of this machine, and nothing of it can be changed: the file system is read-only,
but for /etc, /opt, /var and /home, which are folders in `folder`, and for what ends with the
command: /run, /tmp, /root, /dev/shm, all processes, the network. On its network there are only

    pypi.org               an index with the wheels of shmstream and of all that it needs
    registry-1.docker.io   a docker-registry; so is registry.example.com

behind nginx, which speaks TLS with a certificate that all programs trust.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import nginx
from tests.support.docker_registry import DockerRegistry
from tests.support.programs import program
from tests.support.zygote import ROOT

LONGEST = 600.0
"""Seconds after which a command has failed, on a machine that does other things as well."""
NAMES = ("pypi.org", "registry-1.docker.io", "registry.example.com")
_ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "shadow": "root:*:19000:0:99999:7:::\n",
    "gshadow": "root:*::\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "hosts": f"127.0.0.1 localhost {' '.join(NAMES)}\n",
}
_OF_THE_HOST = ("login.defs", "containers", "alternatives", "ld.so.cache")
_HIDDEN = ("/root/", "/tmp/", "/opt/", "/var/", "/home/")
_NGINX = """
    access_log {folder}/nginx.log; client_max_body_size 0; types {{ text/html html; }}
    ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/certificate;
    server {{ listen 127.0.0.1:443 ssl; server_name pypi.org; root {folder}/index; }}
    server {{
        listen 127.0.0.1:443 ssl; server_name registry-1.docker.io registry.example.com;
        location / {{
            proxy_pass http://127.0.0.1:{port}; proxy_buffering off; proxy_request_buffering off;
            proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto https;
        }}
    }}
"""
_BEGIN = """
{nginx} &
{registry} serve {folder}/registry/config.yml >>{folder}/registry/access.log &
until curl --silent --output /dev/null https://pypi.org/ && \\
    curl --silent --output /dev/null https://registry-1.docker.io/v2/; do sleep 0.1; done
"""


class Machine:
    """A folder for each folder that can be written, and the servers of its network."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0 and os.environ.get("SHMSTREAM_REQUIRE_REAL") != "1":
            pytest.skip("only root can install")
        self._bwrap = program("bwrap", "bubblewrap")
        self.folder = folder
        for name in ("etc", "opt", "var", "home", "bin", "index"):
            self.path(name).mkdir()
        for name in ("var/cache", "var/lib", "var/log", "etc/systemd/system", "etc/ssl"):
            self.path(name).mkdir(parents=True)
        self.path("var/tmp").mkdir(mode=0o1777)
        self.path("var/run").symlink_to("/run")
        for name, text in _ACCOUNTS.items():
            self.path("etc", name).write_text(text)
        for name in _OF_THE_HOST:
            self._copy_of_the_host(name)
        for each in (ROOT / "tests/support/stand_ins").iterdir():
            self.stand_in(each.name, each.read_text())
        self.registry = DockerRegistry(
            program("docker-registry", "docker-registry"), folder / "registry"
        )
        self._make_certificate()
        program("nginx", nginx.PACKAGE)
        http = _NGINX.format(folder=folder, port=self.registry.port)
        self._nginx = shlex.join(nginx.command(folder, http, main="user root;"))

    def _copy_of_the_host(self, name: str) -> None:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, self.path("etc", name), symlinks=True)
        elif source.exists():
            shutil.copy(source, self.path("etc", name))

    def _make_certificate(self) -> None:
        names = ",".join(f"DNS:{each}" for each in NAMES)
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        )
        files = ["-keyout", str(self.path("certificate")), "-out", str(self.path("authority"))]
        subprocess.run(
            [*command.split(), "-subj", "/CN=test", "-addext", f"subjectAltName={names}", *files],
            check=True, capture_output=True,
        )  # fmt: skip
        with self.path("certificate").open("a") as file:
            file.write(self.path("authority").read_text())
        shutil.copy(self.path("authority"), self.path("etc/ssl/authority.pem"))

    def path(self, *parts: str) -> Path:
        """Where a file of the machine is, seen from outside."""
        return self.folder.joinpath(*(each.removeprefix("/") for each in parts))

    def stand_in(self, name: str, script: str) -> None:
        """A program that comes before the one of the host."""
        self.path("bin", name).write_text(script)
        self.path("bin", name).chmod(0o755)

    def run(self, script: str) -> str:
        """Run a script as root in bash, step by step shown; all that it says. It must succeed."""
        self.registry.stop()  # it runs inside, with the same content
        servers = _BEGIN.format(
            folder=self.folder, nginx=self._nginx,
            registry=program("docker-registry", "docker-registry"),
        )  # fmt: skip
        everything = f"{servers}set -x\n{script}\n:"  # bash stays to the end, as parent of servers
        log = self.path("said")
        with log.open("w") as out:
            done = subprocess.run(
                [*self._sandbox(), "bash", "-euo", "pipefail", "-c", everything],
                env=self._environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                timeout=LONGEST, check=False,
            )  # fmt: skip
        said = log.read_text()
        assert done.returncode == 0, said
        return said

    def _sandbox(self) -> list[str]:
        """The command that makes the machine. What is bound later lies above."""
        alone = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        told = [self._bwrap, *alone, "--die-with-parent", "--cap-add", "ALL"]
        told += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
        for each in ("/dev/shm", "/tmp", "/run"):
            told += ["--perms", "1777" if each != "/run" else "0755", "--tmpfs", each]
        told += [
            "--tmpfs",
            "/root",
            "--tmpfs",
            "/sys/fs/cgroup",
        ]  # crun refuses some, and needs none
        for each in ("etc", "opt", "var", "home"):
            told += ["--bind", str(self.path(each)), f"/{each}"]
        above = [str(each) for each in reversed(Path(sys.base_prefix).parents)]
        for each in [it for it in above if it.startswith(_HIDDEN)]:
            told += ["--perms", "0755", "--dir", each]  # other users run this Python, too
        seen = {str(ROOT), sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)}
        for each in sorted(seen - {"/usr"}):
            told += ["--ro-bind", each, each]
        return [*told, "--bind", str(self.folder), str(self.folder), "--chdir", "/home"]

    def _environment(self) -> dict[str, str]:
        """What the programs are told. Nothing of ours reaches them."""
        return {
            "PATH": f"{self.folder}/bin:{sys.base_prefix}/bin:/usr/local/bin:/usr/sbin:/usr/bin",
            "HOME": "/home",
            "LANG": "C.UTF-8",
            "SSL_CERT_FILE": "/etc/ssl/authority.pem",
            "CURL_CA_BUNDLE": "/etc/ssl/authority.pem",
            "PIP_CERT": "/etc/ssl/authority.pem",
            "PIP_NO_COMPILE": "1",  # quicker
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_PROGRESS_BAR": "off",
            "PYTHON": sys.executable,
            "TESTS": str(ROOT),
        }

    def close(self) -> None:
        self.registry.close()
