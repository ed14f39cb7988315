"""Wheels of what this interpreter has installed, as an index that pip can use without the internet.

    requirements("cli", "serve")       the names of all distributions that these extras need
    make_index(folder, names)          folder/simple/NAME/, as pypi.org has it
    add_our_wheel(folder)              shmstream itself, built from these sources

A wheel is an archive of the files of one distribution, which pip unpacks. So packing these files
again gives the wheel back.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from tests.support.zygote import ROOT


def asked_for(*extras: str) -> list[str]:
    """What pyproject.toml says that shmstream needs with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        for text in project["optional-dependencies"][extra]:
            each = Requirement(text)
            found += asked_for(*each.extras) if each.name == "shmstream" else [text]
    return found


def requirements(*extras: str) -> set[str]:
    """The names of all distributions that shmstream needs with these extras, directly or not."""
    left = [Requirement(each) for each in asked_for(*extras)]
    seen: set[tuple[str, str]] = set()
    while left:
        needed = left.pop()
        name = canonicalize_name(needed.name)
        for extra in {"", *needed.extras} - {extra for it, extra in seen if it == name}:
            seen.add((name, extra))
            for text in distribution(name).requires or []:
                each = Requirement(text)
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    left.append(each)
    return {name for name, _ in seen}


def make_index(folder: Path, names: Iterable[str]) -> None:
    """An index of these distributions, at `folder`/simple."""
    for name in names:
        found = distribution(name)
        tag = re.findall(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.MULTILINE)[0]
        place = folder / "simple" / canonicalize_name(name)
        place.mkdir(parents=True)
        pack(found, place / f"{found.name.replace('-', '_')}-{found.version}-{tag}.whl")
        add_page(place)


def add_our_wheel(folder: Path) -> None:
    """The wheel of these sources, in the index at `folder`."""
    place = folder / "simple/shmstream"
    place.mkdir(parents=True)
    source = folder / "source"  # a build writes into it
    shutil.copytree(ROOT / "shmstream", source / "shmstream")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", f"--wheel-dir={place}", str(source)], check=True,
    )  # fmt: skip
    shutil.rmtree(source)
    add_page(place)


def add_wheel(folder: Path, file: str, data: bytes) -> None:
    """One more wheel in the index at `folder`."""
    place = folder / "simple" / parse_wheel_filename(file)[0]
    place.mkdir(parents=True)
    (place / file).write_bytes(data)
    add_page(place)


def name_of(wheel: Path) -> str:
    """The project of a wheel, as its page is called."""
    return str(parse_wheel_filename(wheel.name)[0])


def add_page(place: Path) -> None:
    """The page of a project, with the wheels that are in that folder."""
    links = []
    for each in place.glob("*.whl"):
        digest = hashlib.sha256(each.read_bytes()).hexdigest()
        links.append(f'<a href="{each.name}#sha256={digest}">{each.name}</a><br>')
    (place / "index.html").write_text("\n".join(["<!DOCTYPE html>", *links]))


def pack(found: Distribution, to: Path) -> None:
    """The wheel of an installed distribution."""
    inside = [each for each in found.files or [] if is_of_the_wheel(each.as_posix())]
    with zipfile.ZipFile(to, "w") as archive:
        for each in inside:
            if each.name == "RECORD" and each.parent.name.endswith(".dist-info"):
                archive.writestr(each.as_posix(), "".join(f"{it.as_posix()},,\n" for it in inside))
            else:
                archive.write(str(each.locate()), each.as_posix())


def is_of_the_wheel(path: str) -> bool:
    """Whether it was in the wheel: pip adds programs, compiled modules, and notes of its own."""
    added = path.startswith("..") or "__pycache__" in path
    return not added and not path.endswith((".dist-info/INSTALLER", ".dist-info/REQUESTED"))
