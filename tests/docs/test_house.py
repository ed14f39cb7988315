"""The house: a wing imports only wings below it, and the files of a wing not in a circle.

docs/ARCHITECTURE.md draws the wings. A test compares its table with the one below, so there is one
list of wings. The files of a wing are listed in its `__init__`, and a test compares that with the
folder.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import shmstream
from tools import generate

WINGS = [
    ["arguments", "errors", "events", "units"],
    ["system"],
    ["stream"],
    ["sources"],
    ["storage"],
    ["flight"],
    ["cluster"],
    ["store"],
    ["asgi"],
    ["wsgi"],
    ["filesystem"],
    ["http_source", "server"],  # public paths of what lies in `sources` and `asgi`
    ["__init__"],
    ["upstreams"],
    ["mirror"],
    ["registry"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
"""From the ground up. Modules on one floor do not import each other."""
FLOOR_OF = {wing: floor for floor, wings in enumerate(WINGS) for wing in wings}
HOUSE = Path(shmstream.__file__).parent
ROOMS = sorted(HOUSE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`stream.writer`; a package is its `__init__`."""
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts)


MODULES = {module_of(path): path for path in ROOMS}


def wing_of(module: str) -> str:
    return module.split(".")[0]


@cache
def imports(path: Path) -> set[str]:
    """The modules of the house that a module imports; also in functions, and for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if (node.module or "").split(".")[0] != "shmstream":
                continue
            package = (node.module or "").removeprefix("shmstream").removeprefix(".")
            for name in node.names:
                inner = f"{package}.{name.name}".removeprefix(".")
                found.add(
                    next(
                        each
                        for each in (
                            inner, f"{inner}.__init__", package, f"{package}.__init__".lstrip("."),
                        )
                        if each in MODULES
                    )
                )  # fmt: skip
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "shmstream":
                    module = name.name.removeprefix("shmstream").removeprefix(".")
                    found.add(module if module in MODULES else f"{module}.__init__".lstrip("."))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_wing_imports_only_wings_below_it(module: str) -> None:
    wing = wing_of(module)
    assert wing in FLOOR_OF, "a new wing needs a floor"
    for imported in imports(MODULES[module]):
        below = wing_of(imported)
        assert below == wing or FLOOR_OF[below] < FLOOR_OF[wing], f"{module} imports {imported}"


@pytest.mark.parametrize("wing", FLOOR_OF)
def test_inside_a_wing_there_is_no_circle(wing: str) -> None:
    """Nor does a room import its own wing's `__init__`, which imports the rooms."""
    rooms = {each: path for each, path in MODULES.items() if wing_of(each) == wing}
    arrows = {each: {it for it in imports(path) if it in rooms} for each, path in rooms.items()}
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError


def test_the_page_and_its_picture_have_these_wings() -> None:
    assert [names for names, _ in generate.wings()] == WINGS[::-1]
    drawn = (generate.DOCS / "wings.svg").read_text(encoding="utf-8")
    assert drawn == generate.picture(), "run `make docs`"


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "glossary.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (generate.DOCS / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert len(named) > 20
    for name in named:
        assert (HOUSE / name).exists() or (HOUSE.parent / name).exists(), name


@pytest.mark.parametrize(
    "wing", [each for each in MODULES if each.endswith(".__init__")], ids=lambda each: each[:-9]
)
def test_a_wing_lists_its_files(wing: str) -> None:
    told = ast.get_docstring(ast.parse(MODULES[wing].read_text(encoding="utf-8"))) or ""
    listed = set(re.findall(r"^ *(\w+)/?  ", told, re.MULTILINE))
    folder = MODULES[wing].parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert files | folders <= listed, "a file that the docstring lacks"
    assert listed <= files | folders, "a file that there is not"


def test_only_the_command_line_imports_the_demo() -> None:
    importers = {
        module
        for module, path in MODULES.items()
        if wing_of(module) != "demo" and any(wing_of(each) == "demo" for each in imports(path))
    }
    assert importers == {"cli.demo"}


def test_one_origin_serves_parts_to_the_demo_the_tests_and_the_benches() -> None:
    """Beside nginx, which bench/origin.py starts: its docstring says why."""
    root = HOUSE.parent
    folders = [HOUSE / "demo", HOUSE / "sources", root / "tests" / "support", root / "bench"]
    part = re.compile(r"content-range\W*f?\W*bytes \{", re.IGNORECASE)
    files = [path for folder in folders for path in folder.rglob("*.py")]
    found = [path for path in files if part.search(path.read_text(encoding="utf-8"))]
    assert found == [MODULES["sources.origin"]]


def test_one_file_starts_nginx() -> None:
    folders = [HOUSE.parent / each for each in ("shmstream", "tests/support", "bench", "tools")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    found = [path for path in files if "daemon off;" in path.read_text(encoding="utf-8")]
    assert found == [HOUSE.parent / "bench" / "nginx.py"]


@pytest.mark.parametrize("module", MODULES)
def test_rooms_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert MODULES[module].stem not in {"utils", "core", "base_", "manager", "helpers"}


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{module}.{node.name} has {lines} lines"


def test_only_two_rooms_touch_raw_shared_bytes() -> None:
    """The control block of a stream, and the table of a worker's connections."""
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if module not in ("stream.control_block", "registry.server.connections"):
            assert ".words[" not in text
            assert 'cast("Q")' not in text or module == "stream.subscribers"
            assert "pack_into" not in text


def test_only_one_room_registers_what_a_forked_child_does() -> None:
    for module, path in MODULES.items():
        if module != "system.process":
            assert "register_at_fork" not in path.read_text(encoding="utf-8"), module


def imported_by(program: str) -> set[str]:
    """The modules that a program has imported at its end, beside those of a bare interpreter."""
    told = "print(*set(sys.modules) - before, file=sys.stderr)"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(HOUSE.parent)!r}); before = set(sys.modules)\n"
            f"{program}\n{told}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def test_the_core_needs_only_its_two_dependencies(tmp_path: Path) -> None:
    everything = (
        "import shmstream\n"
        "for name in shmstream.__all__: getattr(shmstream, name)\n"
        f"shmstream.Store({str(tmp_path / 'store')!r}).fetch('a', [b'b'])\n"
    )
    found = {name.split(".")[0] for name in imported_by(everything)}
    third_party = found - set(sys.stdlib_module_names)
    assert {name for name in third_party if not name.startswith("_")} == {
        "shmstream", "posix_ipc", "psutil",
    }  # fmt: skip


def test_importing_costs_little() -> None:
    """What is imported is counted, not timed, because that does not depend on the machine.

    What a store needs is imported with it: later there may be no descriptors, or another user.
    """
    few = imported_by("import shmstream")
    assert few & set(MODULES_OF_OURS) == {"shmstream"}
    much = {"asyncio", "decimal", "pickle", "random", "socket", "ssl", "subprocess", "tempfile"}
    assert not (few | imported_by("from shmstream import Store")) & {"asyncio", "ssl"}
    assert not few & {*much, "concurrent.futures", "multiprocessing", "psutil"}
    assert len(few) < 60, sorted(few)
    assert "asyncio" in imported_by("from shmstream import AsyncBlob")


MODULES_OF_OURS = [f"shmstream.{each}".removesuffix(".__init__") for each in MODULES]


def test_the_public_names_are_told_once_for_people_and_once_for_programs() -> None:
    tree = ast.parse((HOUSE / "__init__.py").read_text(encoding="utf-8"))
    [for_types] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {
        name.name: node.module
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert told == shmstream._ROOM_OF
    assert set(told) == set(shmstream.__all__)
    assert set(shmstream.__all__) <= set(dir(shmstream))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shmstream.__getattr__("nothing")
    assert shmstream.errors.ShmstreamError is shmstream.ShmstreamError


def test_all_that_is_public_is_documented() -> None:
    for name in shmstream.__all__:
        thing = getattr(shmstream, name)
        assert thing.__doc__, name
        assert not thing.__doc__.startswith(f"{name}("), f"{name} has only a generated docstring"
        if isinstance(thing, type):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and callable(value):
                    assert value.__doc__, f"{name}.{attribute}"
