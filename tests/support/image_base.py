"""A base for the image of deploy/Containerfile, where no registry of images can be reached.

    host_base(machine)       almost empty: /usr and Python are those of this machine, as volumes
    debian_base(machine)     Debian's packages, by mmdebstrap; needs Debian's mirrors, and PyPI

Each gives the command that makes podman know the base, under the name that the Containerfile has.
The index of the machine gets what pip needs in that base.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tarfile

from tests.support.programs import program
from tests.support.sandbox import LONGEST, Machine
from tests.support.wheels import add_page, asked_for, make_index, name_of, requirements
from tests.support.zygote import ROOT

CONTAINERFILE = ROOT / "deploy/Containerfile"
EXTRAS = ("cli", "serve", "cluster")
_FOLDERS = (
    "etc",
    "var",
    "opt",
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "usr/local/bin",
    "tmp",
)
_MERGED = ("bin", "sbin", "lib", "lib64")
_FILES = ("passwd", "group", "shadow", "gshadow", "login.defs")
_PIP = "[global]\ncert = /etc/ssl/authority.pem\ncompile = false\n"
_CONFIGURATION = """
[engine]
lock_type = "file"
events_logger = "file"
cgroup_manager = "cgroupfs"
[containers]
log_driver = "k8s-file"
cgroups = "disabled"  # it may set no limits here
netns = "host"
env = ["SSL_CERT_FILE=/etc/ssl/authority.pem"]
volumes = {volumes}
"""


def name_of_the_base() -> str:
    """What the Containerfile begins with."""
    [name] = set(re.findall(r"^FROM (\S+)", CONTAINERFILE.read_text(), re.MULTILINE))
    return str(name)


def host_base(machine: Machine) -> str:
    make_index(machine.path("index"), {*requirements(*EXTRAS), "setuptools"})
    usr = [f"/usr/{each}" for each in ("bin", "sbin", "lib", "lib64")]
    _configure(machine, [*usr, *({sys.base_prefix} - {"/usr"})])
    root = machine.path("base")
    for each in _FOLDERS:
        (root / each).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for each in _MERGED:
        (root / each).symlink_to(f"usr/{each}")
    for each in _FILES:
        (root / "etc" / each).write_bytes(machine.path("etc", each).read_bytes())
    if sys.base_prefix == "/usr":  # Debian's has no `python`
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    with tarfile.open(machine.path("base.tar"), "w") as archive:
        archive.add(root, ".")
    path = f"/usr/local/bin:{sys.base_prefix}/bin:/usr/sbin:/usr/bin"
    return _import(machine, f"ENV PATH={path}")


def debian_base(machine: Machine) -> str:
    packages = "python3,python3-venv,ca-certificates,passwd"
    _configure(machine, [])
    link = 'chroot "$1" ln -s python3 /usr/bin/python'
    _contained(
        machine, program("mmdebstrap", "mmdebstrap"), "--variant=minbase", f"--include={packages}",
        f"--customize-hook={link}", "trixie", str(machine.path("base.tar")),
    )  # fmt: skip
    wheels = machine.path("wheels")
    _contained(
        machine, sys.executable, "-m", "pip", "download", "--python-version=3.13",
        "--only-binary=:all:", f"--dest={wheels}", "setuptools>=77",
        *asked_for(*EXTRAS),
    )  # fmt: skip
    for each in wheels.iterdir():
        place = machine.path("index/simple", name_of(each))
        place.mkdir(parents=True)
        each.rename(place / each.name)
        add_page(place)
    return _import(machine)


def _contained(machine: Machine, *command: str) -> None:
    """Run a program that needs the network. It can change the folder of the machine alone."""
    told = [
        "bwrap",
        "--unshare-pid",
        "--die-with-parent",
        "--cap-add",
        "ALL",
        "--ro-bind",
        "/",
        "/",
    ]
    told += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/tmp"]
    folder = str(machine.folder)
    told += ["--ro-bind", str(ROOT), str(ROOT), "--bind", folder, folder]
    subprocess.run([*told, *command], check=True, timeout=LONGEST)


def _configure(machine: Machine, shown: list[str]) -> None:
    """Settings of podman; `shown`: folders of this machine that each container has, too."""
    machine.path("etc/pip.conf").write_text(_PIP)
    volumes = [f"{each}:{each}:ro" for each in [*shown, "/etc/pip.conf", "/etc/ssl/authority.pem"]]
    settings = _CONFIGURATION.format(volumes=json.dumps(volumes))
    machine.path("etc/containers/containers.conf").write_text(settings)


def _import(machine: Machine, *changes: str) -> str:
    told = [f"--change={each}" for each in changes]
    command = ["podman", "import", "--quiet", *told, str(machine.path("base.tar"))]
    return shlex.join([*command, name_of_the_base()])
