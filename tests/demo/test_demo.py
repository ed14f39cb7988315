"""The demo and its command line, run as a user runs them: real interpreters, a real terminal."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from rich.console import Console

from shmstream import InFlightCopier, __version__, sweep
from shmstream.demo import text
from shmstream.demo.pages import Origin
from shmstream.demo.readers import Part, Reader
from shmstream.demo.reading import Orders, Report, read_blob
from shmstream.demo.sample import NAME, TAG, make_image, make_sample
from shmstream.demo.screen import conclude
from shmstream.stream import doorbell, segment
from shmstream.stream.control_block import State
from shmstream.stream.stream import Stream
from tests.support.commands import PYTHON, ROOT, Command
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.redis import needed
from tests.support.registries import has_image, skopeo, succeeds

_STREAM = r"stream +(demo-\w+)"
FIRST_ACT = ("demo", "--act", "1")
SECOND_ACT = ("demo", "--act", "2")
THIRD_ACT = ("demo", "--act", "3")
FOURTH_ACT = ("demo", "--act", "4")


Begin = Callable[..., Command]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a demo; it is gone when the test ends."""
    demos: list[Command] = []

    def begin_demo(*arguments: str, terminal: bool = False) -> Command:
        demos.append(Command(tmp_path, *arguments, terminal=terminal))
        return demos[-1]

    yield begin_demo
    for demo in demos:
        demo.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of three MiB, of which no two chunks are the same."""
    path = tmp_path / "source"
    path.write_bytes(hashlib.shake_256(b"a blob").digest(3 << 20))
    return path


def _token_of(name: str) -> int:
    with Stream.attach(name, PATIENCE) as stream:
        return stream.block.token


def test_survivors_have_the_digest_and_the_killed_is_told(begin: Begin, source: Path) -> None:
    demo = begin(*FIRST_ACT, "--input", str(source), "--rate", "4", "--readers", "3")
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    with InFlightCopier.attach(name) as copier:  # one more reader, that the demo knows nothing of
        assert copier.readall() == source.read_bytes()
    assert demo.finish() == 0
    assert demo.is_plain
    rows = re.findall(r"^ +(\d) +(\d+) % +[\d.]+ ms +([\d.]+ \w+) +(.*?) *$", demo.output, re.M)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[3] for row in rows] == ["killed, as planned", "SHA-256 ok", "SHA-256 ok"]
    assert [row[2] for row in rows[1:]] == ["3.0 MiB", "3.0 MiB"]
    assert rows[0][1] == "0"
    assert 35 <= int(rows[1][1]) <= 100
    assert 70 <= int(rows[2][1]) <= 100
    assert re.search(r"reader 1 killed with SIGKILL at [12]\.\d MiB", demo.output)
    assert "Both survivors have every byte" in demo.output
    tenths = re.findall(r"^ +(\d+)0 %  [\d.]+ [KM]iB, lag: ", demo.output, re.M)
    assert tenths == sorted(set(tenths), key=int)
    assert tenths[-1] == "10"
    demo.check(name, token)


@pytest.mark.parametrize(
    ("count", "killed", "end"),
    [(1, 0, "The reader has"), (2, 1, "The survivor has"), (5, 1, "All 4 survivors have")],
)
def test_as_fast_as_it_goes(begin: Begin, source: Path, count: int, killed: int, end: str) -> None:
    demo = begin(*FIRST_ACT, "--input", str(source), "--rate", "0", "--readers", str(count))
    assert demo.finish() == 0, demo.output
    assert demo.output.count("killed, as planned") == killed
    assert len(re.findall(r"MiB +SHA-256 ok", demo.output)) == count - killed
    assert end in demo.output
    demo.check(demo.wait_for(_STREAM))


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_blob_of_a_few_bytes(begin: Begin, tmp_path: Path, size: int) -> None:
    """In both acts."""
    tiny = tmp_path / "tiny"
    tiny.write_bytes(bytes(size))
    demo = begin("demo", "--input", str(tiny), "--rate", "0", "--readers", "2")
    assert demo.finish() == 0, demo.output
    demo.check(demo.wait_for(_STREAM))


def test_bars_on_a_terminal(begin: Begin, source: Path) -> None:
    demo = begin(*FIRST_ACT, "--input", str(source), "--rate", "4", "--readers", "2", terminal=True)
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    demo.wait_for(r"writer +\S+━")
    assert demo.finish() == 0, demo.output
    assert not demo.is_plain
    assert re.search(r"reader 1 \S*━\S* +\d+ % joined at 0 %, lag [\d.]+ \w+", demo.output)
    assert re.search(r"reader 1 \S*━\S* +\d+ % killed with SIGKILL at [\d.]+ MiB", demo.output)
    assert re.search(r"reader 2 \S*━\S* +0 % joins at 70 %", demo.output)
    assert re.search(r"reader 2 \S*━\S* +100 % complete, SHA-256 ok", demo.output)
    assert re.search(r"writer +\S*━\S* +100 % 3.0 MiB of 3.0 MiB", demo.output)
    assert "The survivor has every byte" in demo.output
    demo.check(name, token)


def test_ctrl_c_on_a_terminal_leaves_nothing(begin: Begin, source: Path) -> None:
    demo = begin(
        *FIRST_ACT,
        "--input",
        str(source),
        "--rate",
        "0.5",
        "--readers",
        "3",
        terminal=True,
    )
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    demo.wait_for(r"reader 1 .*joined at 0 %")
    assert len(demo.processes()) == 4, "the demo, three readers"
    demo.press(b"\x03")
    assert demo.finish() == 128 + signal.SIGINT
    assert "Stopped" in demo.output
    demo.check(name, token)


def test_readers_that_die_by_themselves_fail_the_demo(begin: Begin, source: Path) -> None:
    demo = begin(*FIRST_ACT, "--input", str(source), "--rate", "4", "--readers", "2")
    demo.wait_for("reader 1 joined")
    readers = [each for each in demo.processes() if each != demo.process.pid]
    assert len(readers) == 2
    for pid in readers:
        os.kill(pid, signal.SIGKILL)
    assert demo.finish() == 1
    assert "reader 1 ended too early, with exit code -9" in demo.output
    assert "NOT as it should be: reader 1, reader 2." in demo.output
    demo.check(demo.wait_for(_STREAM))


# The second act.


def test_the_leader_is_killed_and_the_others_carry_on(begin: Begin, source: Path) -> None:
    demo = begin(*SECOND_ACT, "--input", source.name, "--rate", "4", "--readers", "3")
    assert demo.finish() == 0, demo.output
    assert demo.is_plain
    rows = re.findall(
        r"^ +(\d) +(?:(\d+) ms +)?[\d.]+ ms +([\d.]+ \w+) +(.*?) *$", demo.output, re.M
    )
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert sorted(row[3] for row in rows) == [
        "SHA-256 ok",
        "SHA-256 ok, took over",
        "killed, as planned",
    ]
    assert [row[2] for row in rows if row[3] != "killed, as planned"] == ["3.0 MiB", "3.0 MiB"]
    longest = max(int(row[1]) for row in rows if row[3] != "killed, as planned")
    assert f"pause      {longest} ms, the longest of any survivor" in demo.output
    # The kill comes between the half and three quarters, where the origin waits for it. A demo that
    # looks too late does not see which process takes over.
    killed = re.search(r"process (\d) the leader, killed with SIGKILL at [12].\d MiB", demo.output)
    assert killed
    assert re.search(
        rf"kill +process {killed[1]}, the leader, at [12].\d MiB; "
        r"(process \d|another one) took over and went on at [12].\d MiB",
        demo.output,
    )
    sent = re.search(r"origin +([\d.]+) MiB sent in 2 requests, for a blob of 3.0 MiB", demo.output)
    assert sent
    assert 3.0 <= float(sent[1]) <= 3.8
    assert "Both survivors have every byte" in demo.output
    _check_flight(demo)


@pytest.mark.parametrize("count", [2, 5])
def test_the_leader_is_killed_however_fast_it_goes(begin: Begin, source: Path, count: int) -> None:
    demo = begin(*SECOND_ACT, "--input", str(source), "--rate", "0", "--readers", str(count))
    assert demo.finish() == 0, demo.output
    assert demo.output.count("killed, as planned") == 1
    assert len(re.findall(r"MiB +SHA-256 ok", demo.output)) == count - 1
    _check_flight(demo)


def test_bars_of_a_flight_on_a_terminal(begin: Begin, source: Path) -> None:
    demo = begin(
        *SECOND_ACT, "--input", str(source), "--rate", "2", "--readers", "2", terminal=True
    )
    assert demo.finish() == 0
    assert re.search(r"process \d \S*━\S* +\d+ % leads, lag [\d.]+ \w+", demo.output)
    assert re.search(r"process \d \S*━\S* +\d+ % follows, lag [\d.]+ \w+", demo.output)
    assert re.search(r"process \d \S*━\S* +\d+ % took over, and leads", demo.output)
    assert re.search(r"process \d \S*━\S* +\d+ % the leader, killed with SIGKILL", demo.output)
    assert re.search(r"published \S*━\S* +100 % 3.0 MiB of 3.0 MiB", demo.output)
    _check_flight(demo)


def test_ctrl_c_in_a_flight_leaves_nothing(begin: Begin, source: Path) -> None:
    demo = begin(
        *SECOND_ACT, "--input", str(source), "--rate", "0.5", "--readers", "3", terminal=True
    )
    demo.wait_for(r"process \d .*leads")
    assert len(demo.processes()) == 4, "the demo, three readers"
    demo.press(b"\x03")
    assert demo.finish() == 128 + signal.SIGINT
    assert "Stopped" in demo.output
    _check_flight(demo)


def test_processes_end_when_the_demo_is_killed_in_a_flight(begin: Begin, source: Path) -> None:
    demo = begin(*SECOND_ACT, "--input", str(source), "--rate", "0.5", "--readers", "3")
    demo.wait_for(r"process \d leads")
    _check_killed(demo)


# The third act.


def test_a_registry_loses_a_worker(begin: Begin, source: Path) -> None:
    demo = begin(*THIRD_ACT, "--input", source.name, "--rate", "4", "--readers", "3")
    page = demo.wait_for(r"watch it +http://(127.0.0.1:\d+)/")
    connection = HTTPConnection(page, timeout=PATIENCE)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 200
    connection.close()
    assert demo.finish() == 0, demo.output
    assert demo.is_plain
    rows = re.findall(r"^ +(\d) +(\d+) ms +[\d.]+ ms +([\d.]+ \w+) +(.*?) *$", demo.output, re.M)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(row[3].startswith("4 digests ok") for row in rows)
    killed = demo.wait_for(r"registry worker (\d+) killed at [12]\.\d MiB")
    kill = demo.wait_for(r"kill +worker (.*)")
    assert kill.startswith(f"{killed}, which led, at ")
    assert re.search(r"; (worker \d+|another one) went on, and worker \d+ was started", kill)
    upstream = demo.wait_for(r"upstream +(\d+ requests .*)")
    assert upstream.startswith("3 requests for 3 blobs, and 1 for the rest of one after the kill; ")
    assert "All 3 clients have every byte of an image that was pulled once" in demo.output
    _check_flight(demo)


def test_bars_of_a_registry_on_a_terminal(begin: Begin, source: Path) -> None:
    demo = begin(*THIRD_ACT, "--input", source.name, "--rate", "2", "--readers", "2", terminal=True)
    assert demo.finish() == 0, demo.output
    assert re.search(
        r"registry \S*━\S* +\d+ % [\d.]+ \w+ of [\d.]+ \w+, worker \d+ (killed at|took over)",
        demo.output,
    )
    assert re.search(r"client 2 \S*━\S* +100 % complete", demo.output)
    assert "Both clients have every byte" in demo.output
    _check_flight(demo)


def test_ctrl_c_in_a_registry_leaves_nothing(begin: Begin, source: Path) -> None:
    demo = begin(
        *THIRD_ACT, "--input", str(source), "--rate", "0.5", "--readers", "3", terminal=True
    )
    demo.wait_for(r"registry .*worker \d+ leads")
    assert len(demo.processes()) == 7, "the demo, three clients, the server, two workers"
    demo.press(b"\x03")
    assert demo.finish() == 128 + signal.SIGINT
    _check_flight(demo)


def test_processes_end_when_the_demo_is_killed_in_a_registry(begin: Begin, source: Path) -> None:
    demo = begin(*THIRD_ACT, "--input", str(source), "--rate", "0.5", "--readers", "2")
    demo.wait_for(r"registry worker \d+ leads")
    _check_killed(demo)


def test_others_can_pull_the_image_of_the_demo(source: Path, tmp_path: Path) -> None:
    """It is a real one: skopeo verifies all of it."""
    made = make_image(tmp_path, source)
    largest = max(made.blobs, key=lambda digest: made.blobs[digest])
    with ExitStack() as undo:
        host = Origin(undo, made.pages, 0).url.removeprefix("http://")
        with socket.create_connection(
            ("127.0.0.1", int(host.partition(":")[2]))
        ) as first:  # to be held at three quarters
            first.sendall(f"GET /v2/{NAME}/blobs/{largest} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            first.recv(1)
        client = skopeo(f"{NAME}:{TAG}", host, tmp_path / "copy")
        succeeds(client)
    assert has_image(tmp_path / "copy", list(made.blobs))


# The fourth act.


def test_a_cluster_loses_the_node_that_pulls(begin: Begin, source: Path) -> None:
    needed()
    demo = begin(*FOURTH_ACT, "--input", source.name, "--rate", "4")
    assert demo.finish() == 0, demo.output
    assert demo.is_plain
    rows = re.findall(r"^ +(\d) +\d+ ms +[\d.]+ ms +([\d.]+ \w+) +(.*?) *$", demo.output, re.M)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert sorted(row[2] for row in rows) == ["SHA-256 ok", "SHA-256 ok", "killed, as planned"]
    killed = demo.wait_for(r"kill +node (\d), which pulled, at [12].\d MiB; ")
    assert re.search(rf"node \d gets it from node {killed}", demo.output)
    assert re.search(r"; (node \d|another one) pulled the rest, from [12].\d MiB on", demo.output)
    sent = demo.wait_for(r"origin +([\d.]+) MiB sent in 2 requests, for 3 nodes")
    assert 3.0 <= float(sent) <= 4.3, "three quarters, and all from 1.0 MiB on"
    assert demo.output.count("has the right SHA-256") == 2
    assert "Both survivors have every byte of a blob that three nodes pulled once" in demo.output
    _check_flight(demo)


def test_processes_end_when_the_demo_is_killed_in_a_cluster(begin: Begin, source: Path) -> None:
    needed()
    demo = begin(*FOURTH_ACT, "--input", str(source), "--rate", "0.5")
    demo.wait_for(r"node \d gets it from node \d")
    _check_killed(demo)


def test_what_the_fourth_act_needs(tmp_path: Path) -> None:
    run = subprocess.run(
        [*PYTHON, "-m", "shmstream", *FOURTH_ACT, "--input", str(Path(__file__))],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0
    assert "The fourth act needs redis-server, as in: apt-get install redis-server" in run.stdout


def _check_killed(demo: Command) -> None:
    """Kill the demo: its processes end, and what it leaves can be removed."""
    demo.process.kill()
    demo.finish()
    wait_until(lambda: demo.processes() == [])
    assert "Traceback" not in demo.output
    sweep()
    assert segment.names() == []
    shutil.rmtree(demo.temporary)


def _check_flight(demo: Command) -> None:
    demo.check()
    assert segment.names() == []
    assert list(doorbell.names()) == []


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(begin: Begin, number: signal.Signals) -> None:
    demo = begin("demo", "--text")
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    demo.wait_for("chunk  3")
    assert (demo.folder / "client1.txt").exists()
    demo.process.send_signal(number)
    assert demo.finish() == 128 + number
    assert "Stopped" in demo.output
    assert not (demo.folder / "client1.txt").exists()
    demo.check(name, token)


def test_readers_end_when_the_demo_is_killed(begin: Begin, source: Path) -> None:
    demo = begin(*FIRST_ACT, "--input", str(source), "--rate", "0.5")
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    demo.wait_for("reader 1 joined")
    demo.process.kill()
    demo.finish()
    wait_until(lambda: demo.processes() == [])
    assert "Traceback" not in demo.output
    sweep()
    assert name not in segment.names()
    assert list(doorbell.names(token)) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_the_concept_program(begin: Begin, terminal: bool) -> None:
    assert len(text.TEXT) == 104
    demo = begin("demo", "--text", "--delay", "0.05", terminal=terminal)
    name = demo.wait_for(_STREAM)
    token = _token_of(name)
    assert demo.finish() == 0, demo.output
    assert demo.is_plain is not terminal
    assert (demo.folder / "client1.txt").read_bytes() == text.TEXT
    assert str(demo.folder / "client1.txt") in demo.output
    head, _, tail = demo.output.partition("client 2 joins after 50 bytes:\n\n")
    assert "chunk 10" in head
    assert tail.startswith(text.TEXT.decode())
    sha256 = hashlib.sha256(text.TEXT).hexdigest()[:12]
    assert len(re.findall(f"104 bytes  sha256 {sha256}", tail)) == 3
    assert "joined at byte 50, " in tail
    assert "All three are identical." in tail
    demo.check(name, token)


def test_output_folder_of_the_concept_program(begin: Begin, tmp_path: Path) -> None:
    folder = tmp_path / "else where"
    folder.mkdir()
    demo = begin("demo", "--text", "--delay", "0", "--output", str(folder))
    assert demo.finish() == 0, demo.output
    assert (folder / "client1.txt").read_bytes() == text.TEXT
    assert not (demo.folder / "client1.txt").exists()


def test_a_client_that_fails_fails_the_demo(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "client1.txt").mkdir()
    demo = begin("demo", "--text", "--delay", "0")
    assert demo.finish() == 1
    assert "Error: client 1 failed: IsADirectoryError" in demo.output
    demo.check()


def _report(**differing: object) -> Report:
    facts = {"position": 7, "digests": ("right",), "state": State.COMMITTED} | differing
    return Report("finished", **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (_report(), "SHA-256 ok"),
        (_report(digests=("wrong",)), "WRONG: 7 bytes, wrong"),
        (_report(digests=("right", "right")), "WRONG: 7 bytes, right, right"),
        (_report(digests=()), "WRONG: 7 bytes, "),
        (_report(position=6), "WRONG: 6 bytes, right"),
        (_report(state=State.STREAMING), "ended in state STREAMING"),
        (Report("failed", error="WriterDied: ..."), "WriterDied: ..."),
        (Report("joined"), "ended too early, with exit code 3"),
        (Report("ready"), "ended too early, with exit code 3"),
        (Report(), "ended too early, with exit code 3"),
    ],
)
def test_what_is_wrong_is_told(
    report: Report, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader.__new__(Reader)  # without a process
    reader.part = Part("reader", read_blob, Orders(), 7, ("right",))
    reader.name, reader.number, reader.joins_at = "reader 1", 1, 0.0
    reader.report, reader.exit_code, reader.killed = report, 3, None
    reader.position = report.position
    good = conclude(Console(width=100), [reader], [], "of a blob")
    assert good is (report == _report())
    output = capsys.readouterr().out
    assert told in output
    assert told in reader.doing
    assert ("NOT as it should be: reader 1." in output) is not good
    assert ("The reader has every byte of a blob." in output) is good


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    what = make_sample(first, 3 << 20)
    assert make_sample(second, 3 << 20) == what
    assert first.read_bytes() == second.read_bytes()
    assert 3 << 20 <= first.stat().st_size < 12 << 20
    with tarfile.open(first) as tar:
        assert f"a tar of {len(tar.getmembers())} files of " in what


# The command line.


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )


def test_version_and_help() -> None:
    assert _run("-m", "shmstream", "--version").stdout == f"shmstream {__version__}\n"
    assert "demo" in _run("-m", "shmstream", "--help").stdout
    options = _run("-m", "shmstream", "demo", "--help").stdout
    for option in ("--text", "--delay", "--output", "--input", "--rate", "--readers"):
        assert option in options


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "/no/such/file"], "'--input': File '/no/such/file' does not exist."),
        (["--input", "/dev/zero"], "'/dev/zero' is not a file with bytes in it."),
        (["--rate", "-1"], "'--rate': -1.0 is not in the range"),
        (["--rate", "nan"], "'--rate': nan is not a number."),
        (["--rate", "fast"], "'--rate': 'fast' is not a valid float"),
        (["--readers", "0"], "'--readers': 0 is not in the range"),
        (["--text", "--delay", "-1"], "'--delay': -1.0 is not in the range"),
        (["--text", "--output", "/no/such"], "'--output': Directory '/no/such' does not exist."),
        (["--delay", "1"], "--delay goes with --text."),
        (["--text", "--rate", "1"], "--rate does not go with --text."),
        (["--text", "--input", "/etc/passwd"], "--input does not go with --text."),
    ],
)
def test_bad_arguments(arguments: list[str], told: str) -> None:
    run = _run("-m", "shmstream", "demo", *arguments)
    assert run.returncode == 2
    assert told in run.stderr
    assert "Usage: shmstream demo" in run.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from shmstream.__main__ import main"
    run = _run("-c", f"{code}; main()")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == "the command line needs: pip install 'shmstream[cli]'\n"
