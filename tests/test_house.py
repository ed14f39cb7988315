"""The house: each room imports only rooms on lower floors, stays small, and says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shmstream

FLOORS = [
    {"errors"},
    {
        "control",
        "segment",
        "doorbell",
        "liveness",
        "pacer",
        "mover",
        "source",
        "seal",
        "journal",
        "events",
        "units",
        "answer",
        "congestion",
        "descriptors",
        "threads",
    },
    {"claims", "digest", "subscribers", "http_body", "http_client", "fsspec_source", "attempts"},
    {"stream", "partial", "http_source"},
    {"streamer", "tail", "sources", "invariants"},
    {"copier", "resumable", "layout"},
    {"audit"},
    {"upkeep"},
    {"leader"},
    {"flight"},
    {"blob"},
    {"lookout"},
    {"aio"},
    {"passing"},
    {"store", "sending"},
    {"asgi", "server", "watch"},
    {"__init__"},
    {"registry"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HOUSE = Path(shmstream.__file__).parent
ROOMS = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "shmstream":
                found |= {name.name if name.name in FLOOR_OF else "__init__" for name in node.names}
            elif (node.module or "").startswith("shmstream."):
                found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "shmstream":
                    found.add((name.name + ".__init__").split(".")[1])
    return found


@pytest.mark.parametrize("path", ROOMS, ids=room_of)
def test_rooms_import_only_lower_floors(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR_OF, "a new room needs a floor"
    for imported in imports(path) - {room}:
        assert FLOOR_OF[imported] < FLOOR_OF[room], f"{room} imports {imported}"


@pytest.mark.parametrize("path", ROOMS, ids=room_of)
def test_rooms_are_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 480
    assert path.stem not in {"utils", "core", "base", "manager", "helpers"}


def test_only_control_touches_raw_shared_bytes() -> None:
    for path in ROOMS:
        text = path.read_text(encoding="utf-8")
        if room_of(path) != "control":
            assert ".words[" not in text
            assert 'cast("Q")' not in text or room_of(path) == "subscribers"
        assert "pack_into" not in text or room_of(path) == "control"


def test_the_core_needs_only_its_two_dependencies() -> None:
    program = (
        "import sys; before = set(sys.modules); import shmstream;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(HOUSE.parent)!r});" + program,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    third_party = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert {name for name in third_party if not name.startswith("_")} == {
        "shmstream", "posix_ipc", "psutil",
    }  # fmt: skip


def test_all_that_is_public_is_documented() -> None:
    for name in shmstream.__all__:
        thing = getattr(shmstream, name)
        assert thing.__doc__, name
        assert not thing.__doc__.startswith(f"{name}("), f"{name} has only a generated docstring"
        if isinstance(thing, type):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and callable(value):
                    assert value.__doc__, f"{name}.{attribute}"
