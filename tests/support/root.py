"""What only root can do: mount file systems, and be another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.interpreters import wait_until
from tests.support.programs import program

GROUP = 5000
"""A group for the users of a shared store."""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("SHMSTREAM_REQUIRE_REAL"),
    reason="only root can mount, and be another user",
)


def needs_namespaces() -> None:
    """Skip the test where no network namespace can be made, as in some containers."""
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if done.returncode and not os.environ.get("SHMSTREAM_REQUIRE_REAL"):
        pytest.skip(f"no network namespace can be made: {done.stderr.decode().strip()}")


MKFS = {
    "btrfs": ("btrfs-progs", ["mkfs.btrfs", "-q"]),
    "xfs": ("xfsprogs", ["mkfs.xfs", "-q"]),
}
"""How a file system is made whose files can share blocks, and the package of Debian."""


def mount(
    folder: Path, options: str = "size=8m", kind: str = "tmpfs", device: str | Path = "tmpfs"
) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, device, folder], check=True)


@contextmanager
def mounted_image(folder: Path, kind: str) -> Iterator[Path]:
    """A new file system of that kind, in an image of 400 MiB, which takes what is written only."""
    package, make = MKFS[kind]
    image, mounted = folder / f"{kind}.image", folder / kind
    with image.open("wb") as file:
        file.truncate(400 << 20)  # mkfs.xfs wants 300 MiB
    subprocess.run([program(make[0], package), *make[1:], image], check=True)
    mount(mounted, "loop", kind, image)
    try:
        yield mounted
    finally:
        unmount(mounted)  # which frees the loop device
        mounted.rmdir()
        image.unlink()


def unmount(folder: Path) -> None:
    # A thread that looks at the folder may keep the mount busy for a moment.
    wait_until(lambda: subprocess.run(["umount", folder], check=False).returncode == 0)


def become(user: int, group: int) -> str:
    """The beginning of a program that runs as that user, and could not import anything then."""
    return (
        "import os, sys, shmstream.http_source; from shmstream import *\n"
        "import encodings.ascii, encodings.idna, encodings.latin_1\n"
        f"os.setgroups([]); os.setgid({group}); os.setuid({user})\n"
    )


def as_user(user: int, group: int, folder: str, program: str) -> str:
    """What a program prints that runs as that user; it has a `store` in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", become(user, group) + program, folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_shared(folder: Path) -> None:
    """Make a folder that the users of `GROUP` share."""
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2770)


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that other users may reach: pytest keeps its own private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
