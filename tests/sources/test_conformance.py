"""Every source of this library passes the conformance suite, and so does its example."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import fsspec
import pytest

from shmstream.sources import conformance
from shmstream.sources.base import Source
from shmstream.sources.command import CommandSource, ProcessSource
from shmstream.sources.conformance import SourceConformance
from shmstream.sources.fsspec import FsspecSource
from shmstream.sources.http import HTTPSource
from shmstream.sources.local import FileSource, IterableSource, PathSource
from tests.support.origin import Origin


class InFolder(SourceConformance):
    """Sources of files in the folder of the test."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.numbers = count()

    def write(self, content: bytes) -> Path:
        path = self.folder / f"blob-{next(self.numbers)}"
        path.write_bytes(content)
        return path

    def overwrite(self, path: str, content: bytes) -> None:
        Path(path).write_bytes(content)
        os.utime(path, (1, 1))  # also within one tick of the clock


class TestPathSource(InFolder):
    def make_source(self, content: bytes) -> PathSource:
        return PathSource(self.write(content))

    def change(self, source: PathSource, content: bytes) -> None:
        self.overwrite(source.path, content)

    def make_failing(self) -> PathSource:
        return PathSource(self.folder / "nothing")


class TestFileSource(InFolder):
    """A file of the disk: it has a validator."""

    describes = False

    @pytest.fixture(autouse=True)
    def _closing(self) -> Iterator[None]:
        self.files: list[io.BufferedReader] = []
        yield
        for file in self.files:
            file.close()

    def make_source(self, content: bytes) -> FileSource:
        self.files.append(self.write(content).open("rb"))
        return FileSource(self.files[-1])

    def change(self, source: FileSource, content: bytes) -> None:
        self.overwrite(source.name, content)

    def make_failing(self) -> FileSource:
        source = self.make_source(b"some")
        self.files[-1].close()
        return source


class TestFileSourceInMemory(SourceConformance):
    describes = False
    has_validator = False

    def make_source(self, content: bytes) -> FileSource:
        return FileSource(io.BytesIO(content))

    def make_failing(self) -> FileSource:
        file = io.BytesIO(b"some")
        source = FileSource(file)
        file.close()
        return source


class Unseekable(io.RawIOBase):
    """A file that cannot seek, as a pipe."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._content.readinto(buffer)


class TestFileSourceThatCannotSeek(SourceConformance):
    describes = has_validator = begins_anywhere = tells_size = False
    opens_once = True

    def make_source(self, content: bytes) -> FileSource:
        return FileSource(Unseekable(content))  # type: ignore[arg-type]

    def make_failing(self) -> FileSource:
        source = self.make_source(b"some")
        source.open()
        return source


class TestIterableSource(SourceConformance):
    describes = has_validator = begins_anywhere = tells_size = False
    opens_once = True

    def make_source(self, content: bytes) -> IterableSource:
        return IterableSource(content[at : at + 1000] for at in range(0, len(content), 1000))

    def make_failing(self) -> IterableSource:
        def failing() -> Iterator[bytes]:
            yield b"some"
            raise OSError("no more")

        return IterableSource(failing())


class TestCommandSource(InFolder):
    describes = has_validator = begins_anywhere = tells_size = False

    def make_source(self, content: bytes) -> CommandSource:
        return CommandSource(["cat", self.write(content)])

    def make_failing(self) -> CommandSource:
        return CommandSource(["false"])


class TestProcessSource(InFolder):
    describes = has_validator = begins_anywhere = tells_size = False
    opens_once = True

    @pytest.fixture(autouse=True)
    def _ending(self) -> Iterator[None]:
        self.begun: list[subprocess.Popen[bytes]] = []
        yield
        for process in self.begun:
            with process:
                process.kill()

    def begin(self, *command: str) -> ProcessSource:
        self.begun.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return ProcessSource(self.begun[-1])

    def make_source(self, content: bytes) -> ProcessSource:
        return self.begin("cat", str(self.write(content)))

    def make_failing(self) -> ProcessSource:
        return self.begin("false")


class OfOrigin(SourceConformance):
    """HTTP, from a server that has the blob under a path with credentials in it."""

    secrets = ("me:s3cret", "s3cret")
    etag: str | None = "tag"
    last_modified: str | None = None
    ranges = True
    framing = "length"

    @pytest.fixture(autouse=True)
    def _origin(self, origin_process: Origin, direct: None) -> None:  # noqa: ARG002
        origin_process.reset()
        self.origin = origin_process

    def serve(self, content: bytes) -> str:
        tag = hashlib.sha256(content).hexdigest()[:16]
        served = self.origin.serve(
            "/blob?key=s3cret",
            text=content.decode(),
            etag=f'"{tag}"' if self.etag else None,
            last_modified=self.last_modified,
            ranges=self.ranges,
            framing=self.framing,
        )
        return served.replace("//", "//me:s3cret@")

    def make_source(self, content: bytes) -> HTTPSource:
        return HTTPSource(self.serve(content))

    def change(self, source: HTTPSource, content: bytes) -> None:
        assert source
        self.serve(content)

    def make_failing(self) -> HTTPSource:
        self.origin.serve("/none?key=s3cret", status=404)
        url = self.origin.url("/none?key=s3cret")
        return HTTPSource(url.replace("//", "//me:s3cret@"))


class TestHTTPSource(OfOrigin):
    pass


class TestHTTPSourceWithoutRanges(OfOrigin):
    begins_anywhere = False
    ranges = False


class TestHTTPSourceWithoutValidator(OfOrigin):
    has_validator = False
    etag = None


class TestHTTPSourceOfUnknownSize(OfOrigin):
    """In chunks, from the beginning. A range has a size in any case."""

    tells_size = False
    begins_anywhere = False
    ranges = False
    framing = "chunked"


class TestFsspecSourceOfFiles(InFolder):
    def make_source(self, content: bytes) -> FsspecSource:
        self.path = self.write(content)
        return FsspecSource(f"file://{self.path}")

    def change(self, source: FsspecSource, content: bytes) -> None:
        assert source
        self.overwrite(str(self.path), content)

    def make_failing(self) -> FsspecSource:
        return FsspecSource(f"file://{self.folder}/nothing")


class TestFsspecSourceInMemory(SourceConformance):
    @pytest.fixture(autouse=True)
    def _memory(self) -> Iterator[None]:
        self.system = fsspec.filesystem("memory")
        yield
        if self.system.exists("/conformance"):
            self.system.rm("/conformance")

    def make_source(self, content: bytes) -> FsspecSource:
        self.system.pipe("/conformance", content)
        return FsspecSource("memory://conformance")

    def change(self, source: FsspecSource, content: bytes) -> None:
        assert source
        self.system.pipe("/conformance", content)

    def make_failing(self) -> FsspecSource:
        return FsspecSource("memory://nothing")


def example() -> str:
    """The program in the suite's documentation."""
    text = (conformance.__doc__ or "").split("runs the tests:\n\n")[1]
    return textwrap.dedent(text.split("\nWhat a source cannot do")[0])


def outcomes(folder: Path, program: str, *, plugins: bool = False) -> tuple[int, set[str]]:
    """The exit code of pytest for a test module, and the tests that failed.

    `plugins`: with all that are installed, as a user has them; to import them takes seconds.
    """
    (folder / "test_mine.py").write_text(program)
    options = ["-p", "no:cacheprovider", "-q", "-rf", "--rootdir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(conformance.__file__).parents[2])}
    if not plugins:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "skipped" not in done.stdout, done.stdout
    return done.returncode, set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))


def test_the_example_of_the_documentation_passes(tmp_path: Path) -> None:
    assert outcomes(tmp_path, example(), plugins=True) == (0, set())


@pytest.mark.parametrize(
    ("right", "wrong", "failing"),
    [
        ("if validator not in (None, current) or offset > size:", "if offset > size:",
         {"test_a_validator_of_another_source", "test_a_content_that_changed"}),
        (" or offset > size", "", {"test_open_behind_the_end"}),
        ("raise ValueError", "raise SourceError('s', 0, 'r') #", {"test_a_negative_offset"}),
        ("raise SourceError(self.name, offset, \"there is none\", retryable=False)",
         "raise OSError('none')", {"test_a_failure_is_a_source_error"}),
        ('name = "memory"', 'name = "http://me:secret@memory/"', {"test_name_has_no_credentials"}),
        ("[rest] if rest else []", "[rest]", set()),
        ("iter([rest] if rest else [])", "iter([rest, b''])", {"test_buffers"}),
        ("rest = self.content[offset:]", "rest = self.content", {"test_open_at_an_offset",
         "test_open_at_the_end", "test_a_validator_that_is_handed_back"}),
        ("describes = False", "describes = True", {"test_describe_agrees_with_open"}),
        ("str(hash(self.content))", "'same'", {"test_a_content_that_changed"}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source_is_found(
    tmp_path: Path, right: str, wrong: str, failing: set[str]
) -> None:
    program = example()
    assert right in program
    code, failed = outcomes(tmp_path, program.replace(right, wrong))
    assert failed == failing
    assert code == bool(failing)


def test_nothing_imports_the_suite() -> None:
    program = "import sys, shmstream, shmstream.sources.http, shmstream.sources.fsspec;"
    program += "print('pytest' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_all_sources_are_tried() -> None:
    kinds: tuple[type[Source], ...] = (
        PathSource, FileSource, IterableSource, HTTPSource, FsspecSource, CommandSource,
        ProcessSource,
    )  # fmt: skip
    text = Path(__file__).read_text()
    assert all(f"-> {kind.__name__}:" in text for kind in kinds)
