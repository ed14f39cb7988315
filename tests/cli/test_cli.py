"""The command line, run as a user runs it: real processes, a real origin, pipes and terminals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmstream import State, Store
from shmstream.cli import formatting, options
from shmstream.sources.http import close_pools
from shmstream.storage.flights import followers_of
from shmstream.stream import segment
from tests.support.commands import PYTHON, ROOT, Command
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.origin import Origin
from tests.support.roles import content, sha256

SIZE = 300_000
BLOB = content(1, SIZE)
DIGEST = f"sha256:{sha256(BLOB)}"
COMMANDS = ("fetch", "serve", "ls", "top", "check", "gc", "evict", "demo", "completion")


class Running:
    """`shmstream ...` with pipes for its output."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [*PYTHON, "-m", "shmstream", *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def read(self, count: int) -> bytes:
        """So many bytes of its standard output, waiting for them."""
        data = b""
        while len(data) < count and (more := os.read(self.stdout.fileno(), count - len(data))):
            data += more
        return data

    def finish(self) -> tuple[int, bytes, str]:
        """Its exit code, and what it wrote."""
        out, errors = self.process.communicate(timeout=PATIENCE)
        told = errors.decode()
        assert "Traceback" not in told
        assert "Warning" not in told
        return self.process.returncode, out, told

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Begin = Callable[..., Running]


@pytest.fixture
def store(
    as_found: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Store]:
    """The store that every command uses unless it is told of another. Nothing is left of it."""
    path = tmp_path / "store"
    monkeypatch.setenv("SHMSTREAM_STORE", str(path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "100")
    yield Store(path)
    for partial in path.rglob("*.shmstream-*"):
        partial.unlink()
    close_pools()


@pytest.fixture
def begin(store: Store, tmp_path: Path) -> Iterator[Begin]:  # noqa: ARG001
    """Start a command; it is gone when the test ends, and so is what it had in shared memory."""
    begun: list[Running] = []

    def begin_command(*arguments: str) -> Running:
        begun.append(Running(*arguments, cwd=tmp_path))
        return begun[-1]

    yield begin_command
    for each in begun:
        each.close()
    Store(tmp_path / "store").gc()


@pytest.fixture
def run(begin: Begin) -> Callable[..., tuple[int, str, str]]:
    """Run a command to its end: exit code, standard output, standard error."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code, out, errors = begin(*arguments).finish()
        return code, out.decode(), errors

    return run_command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(store: Store, tmp_path: Path) -> Iterator[Callable[..., Command]]:  # noqa: ARG001
    """Start a command in a terminal."""
    shown: list[Command] = []

    def show_command(*arguments: str) -> Command:
        shown.append(Command(tmp_path, *arguments, terminal=True))
        return shown[-1]

    yield show_command
    for each in shown:
        each.close()
    Store(tmp_path / "store").gc()


Show = Callable[..., Command]


@pytest.fixture
def url(origin: Origin) -> str:
    """Where the blob is."""
    return origin.serve("/blob", seed=1, size=SIZE)


def flying(store: Store, published: int = 1, followers: int = 0) -> None:
    """Wait until a flight has published so much, and so many others follow."""

    def is_so() -> bool:
        flights = store.flights()
        return (
            len(flights) == 1
            and flights[0].leader is not None
            and flights[0].state is State.STREAMING
            and flights[0].published >= published
            and len(followers_of(flights[0])) == followers
        )

    wait_until(is_so)


# fetch.


def test_a_path_in_the_store(run: Run, url: str, origin: Origin) -> None:
    code, out, told = run("fetch", url)
    assert code == 0
    assert Path(out.removesuffix("\n")).read_bytes() == BLOB
    assert re.fullmatch(rf"{re.escape(url)}: leads, 293.0 KiB(?: in .*)?\n", told)
    assert run("fetch", url, "--quiet") == (0, out, "")
    code, again, told = run("fetch", url)
    assert (code, again) == (0, out)
    assert told == f"{url}: stored, 293.0 KiB\n"
    assert len(origin.requests("/blob")) == 1


def test_a_digest_is_the_key(run: Run, url: str, store: Store) -> None:
    for digest in (DIGEST, DIGEST.removeprefix("sha256:").upper()):
        code, out, _ = run("fetch", url, "--digest", digest)
        assert code == 0
        assert out.strip() == os.path.join(store.folder, "blobs", *DIGEST.split(":"))
    assert [key for key, _ in store.blobs()] == [DIGEST]


def test_keys_of_other_blobs(run: Run, url: str, store: Store, tmp_path: Path) -> None:
    """A URL without its credentials, a path from the root, or whatever is wished for."""
    (tmp_path / "file").write_bytes(BLOB)
    assert run("fetch", url.replace("//", "//me:secret@"))[0] == 0
    assert run("fetch", "file")[0] == 0
    assert run("fetch", "file", "--key", "mine")[0] == 0
    assert [key for key, _ in store.blobs()] == [url, str(tmp_path / "file"), "mine"]


def test_wrong_bytes(run: Run, origin: Origin, url: str, tmp_path: Path) -> None:
    origin.change("/blob", wrong_at=SIZE // 2)
    (tmp_path / "out").write_bytes(b"what was there")
    code, out, told = run("fetch", url, "--digest", DIGEST, "-o", "out")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: .*not {DIGEST}: the bytes are not that blob\n", told)
    assert (tmp_path / "out").read_bytes() == b"what was there"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "store"]


def test_no_source_has_it(run: Run, origin: Origin, url: str) -> None:
    """The first refuses, the second knows nothing of it: the message tells both."""
    origin.refuse()
    code, out, told = run("fetch", url, "--source", "/no/such/file", "-o", "out")
    assert (code, out) == (1, "")
    assert told.startswith("Error: ")
    assert "Connection refused" in told
    assert "/no/such/file at offset 0: No such file or directory" in told
    assert not Path("out").exists()


def test_the_next_source(run: Run, origin: Origin, elsewhere: Origin, url: str) -> None:
    origin.change("/blob", status=404)
    other = elsewhere.serve("/other", seed=1, size=SIZE)
    code, out, _ = run("fetch", url, "--digest", DIGEST, "--source", other, "--quiet")
    assert code == 0
    assert Path(out.strip()).read_bytes() == BLOB


def test_headers_go_to_their_host_only(
    run: Run, origin: Origin, elsewhere: Origin, url: str
) -> None:
    origin.change("/blob", status=404)
    here, other = origin.serve("/more", status=404), elsewhere.serve("/other", seed=1, size=SIZE)
    sources = ("--source", here, "--source", other)
    headers = ("--header", "Authorization: Bearer secret", "--header", "X-Colour:  blue: dark")
    code, _, told = run("fetch", url, *sources, *headers, "-v")
    assert code == 0
    assert "secret" not in told
    for request in origin.requests():
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["x-colour"] == "blue: dark"
    [request] = elsewhere.requests()
    assert "authorization" not in request.headers
    assert "x-colour" not in request.headers


def test_a_file_is_there_whole(run: Run, url: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run("fetch", url, "-o", "new")[:2] == (0, "")
    finally:
        os.umask(before)
    old = tmp_path / "old"
    old.write_bytes(b"other bytes")
    old.chmod(0o751)
    (tmp_path / "link").symlink_to("old")
    assert run("fetch", url, "-o", "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    for path, mode in ((tmp_path / "new", 0o640), (old, 0o751)):
        assert path.read_bytes() == BLOB
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "new", "old", "store"]


def test_what_is_no_file_stays_what_it_is(begin: Begin, run: Run, url: str, tmp_path: Path) -> None:
    assert run("fetch", url, "-o", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    fetch = begin("fetch", url, "-o", "pipe")
    assert (tmp_path / "pipe").read_bytes() == BLOB
    assert fetch.finish()[0] == 0
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("/no/such/folder/file", "cannot write to '/no/such/folder/file': No such file or"),
        ("/proc/version", "cannot write to '/proc/version': "),
        ("/dev/full", "cannot write to '/dev/full': No space left on device"),
    ],
)
def test_an_output_that_cannot_be(run: Run, url: str, out: str, told: str) -> None:
    code, printed, errors = run("fetch", url, "-o", out, "--quiet")
    assert (code, printed) == (1, "")
    assert errors.startswith(f"Error: {told}")
    assert errors.count("\n") == 1


def test_a_pipe_gets_bytes_as_they_arrive(begin: Begin, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    fetch = begin("fetch", url, "--digest", DIGEST, "-o", "-")
    head = fetch.read(150_000)
    origin.release()
    code, rest, told = fetch.finish()
    assert code == 0
    assert head + rest == BLOB
    assert told.startswith(f"{DIGEST}: leads, 293.0 KiB")


def test_a_closed_pipe(begin: Begin, store: Store, origin: Origin, url: str) -> None:
    """It ends quietly, and whoever follows goes on."""
    origin.change("/blob", count=1, stall_after=200_000)
    leader = begin("fetch", url, "-o", "-")
    flying(store)
    follower = begin("fetch", url, "-o", "-")
    flying(store, followers=1)
    assert leader.read(1000) == BLOB[:1000]
    leader.stdout.close()
    origin.release()
    assert leader.process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert leader.process.stderr is not None
    assert leader.process.stderr.read() == b""
    code, out, _ = follower.finish()
    assert (code, out) == (0, BLOB)
    assert len(origin.requests("/blob")) <= 2


def test_a_closed_pipe_of_a_list(begin: Begin, run: Run, url: str) -> None:
    assert run("fetch", url)[0] == 0
    ls = begin("ls", "--json")
    ls.stdout.close()
    ls.process.wait(PATIENCE)
    assert ls.process.stderr is not None
    assert (ls.process.returncode, ls.process.stderr.read()) == (141, b"")


def test_standard_output_that_fails(store: Store, url: str) -> None:
    command = " ".join([*PYTHON, "-m", "shmstream fetch", url, "-q -o -"])
    for redirection, told in (
        (">&-", "there is no standard output to write to: it is closed"),
        (">/dev/full", "cannot write to standard output: No space left on device"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, f"Error: {told}\n")
    assert store.check() == []


def test_two_at_once(begin: Begin, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=100_000)
    first = begin("fetch", url, "-o", "-")
    flying(store)
    second = begin("fetch", url, "-o", "-")
    flying(store, followers=1)
    origin.release()
    outcomes = [first.finish(), second.finish()]
    assert [code for code, _, _ in outcomes] == [0, 0]
    assert [out for _, out, _ in outcomes] == [BLOB, BLOB]
    assert [told.split(": ")[1].split(",")[0] for _, _, told in outcomes] == ["leads", "follows"]
    assert [each.method for each in origin.requests("/blob")] == ["GET"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle(
    begin: Begin, store: Store, origin: Origin, url: str, number: int, tmp_path: Path
) -> None:
    """The leader leaves no file, and hands over to whoever follows."""
    origin.change("/blob", count=1, stall_after=200_000)
    leader = begin("fetch", url, "--digest", DIGEST, "-o", "out")
    flying(store, published=196_608)
    follower = begin("fetch", url, "--digest", DIGEST)
    flying(store, published=196_608, followers=1)
    leader.process.send_signal(number)
    assert leader.finish() == (128 + number, b"", "")
    assert [each.name for each in tmp_path.iterdir()] == ["store"]
    code, out, told = follower.finish()
    assert code == 0
    assert told.startswith(f"{DIGEST}: leads, ")
    assert Path(out.decode().strip()).read_bytes() == BLOB
    assert [each.range for each in origin.requests("/blob")] == [None, "bytes=200000-"]


def test_what_was_interrupted_goes_on(begin: Begin, run: Run, origin: Origin, url: str) -> None:
    origin.change("/blob", count=1, stall_after=200_000)
    fetch = begin("fetch", url, "-o", "-")
    assert fetch.read(190_000) == BLOB[:190_000]
    fetch.process.kill()
    fetch.process.wait()
    assert run("gc")[0] == 0
    code, out, told = run("fetch", url, "--verbose")
    assert code == 0
    assert Path(out.strip()).read_bytes() == BLOB
    assert f"INFO    {url}: resumed at 200000 bytes" in told
    assert f"INFO    {url}: complete, 300000 bytes" in told
    assert [each.range for each in origin.requests("/blob")] == [None, "bytes=200000-"]


def test_a_limit_evicts(run: Run, origin: Origin, url: str, store: Store) -> None:
    assert run("fetch", url)[0] == 0
    other = origin.serve("/other", seed=2, size=SIZE)
    assert run("fetch", other, "--max-bytes", "400kB")[0] == 0
    assert [key for key, _ in store.blobs()] == [other]


def test_a_bar_on_a_terminal(show: Show, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    leader = show("fetch", url, "-v")
    leader.wait_for(r"blob leads \S*━\S* +[\d.]+ KiB of 293.0 KiB")
    flying(store)
    follower = show("fetch", url, "-o", "out")
    follower.wait_for(r"blob follows \S*━")
    flying(store, followers=1)
    origin.release()
    assert leader.finish() == 0
    assert follower.finish() == 0
    assert re.search(r"leads ━+ +293.0 KiB +(?:[\d.]+ \w+/s  )?in 0:\d\d", leader.output)
    assert f"INFO    {url}: complete, 300000 bytes\n" in leader.output
    assert leader.output.rstrip().endswith(os.path.basename(Store(store.folder).blobs()[0][1].path))
    assert (follower.folder / "out").read_bytes() == BLOB
    leader.check()


def test_no_bar_where_the_bytes_go(show: Show, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a line\n")
    assert run("fetch", "text")[0] == 0
    fetch = show("fetch", "text", "-o", "-")
    assert fetch.finish() == 0
    assert fetch.is_plain
    assert fetch.output == f"a line\n{tmp_path}/text: stored, 7 bytes\n"


def test_ctrl_c_on_a_terminal(show: Show, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    fetch = show("fetch", url)
    fetch.wait_for(r"blob leads")
    flying(store)
    fetch.press(b"\x03")
    assert fetch.finish() == 130
    assert "Error" not in fetch.output
    fetch.check()
    wait_until(lambda: segment.names() == [])


# ls, top.


def test_a_list(run: Run, url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"seven..")
    assert run("fetch", url, "--digest", DIGEST)[0] == 0
    assert run("fetch", "file", "--key", "a\x1b[31m\nkey")[0] == 0
    code, out, told = run("ls")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["SIZE", "LAST", "USED", "BLOB"]
    assert re.fullmatch(rf"293.0 KiB  \d+-\d\d-\d\d \d\d:\d\d:\d\d  {DIGEST}", lines[0])
    assert re.fullmatch(r"  7 bytes  [\d-]+ [\d:]+  a\\x1b\[31m\\nkey", lines[1])
    assert told == f"2 blobs of 293.0 KiB, 0 flights in {store.folder}\n"

    facts = json.loads(run("ls", "--json")[1])
    assert facts["store"] == store.folder
    assert facts["flights"] == []
    assert [each["key"] for each in facts["blobs"]] == [DIGEST, "a\x1b[31m\nkey"]
    first = facts["blobs"][0]
    assert first == {
        "key": DIGEST,
        "size": SIZE,
        "last_used": first["last_used"],
        "path": os.path.join(store.folder, "blobs", *DIGEST.split(":")),
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["last_used"])


@pytest.fixture
def flight(begin: Begin, store: Store, origin: Origin, url: str) -> tuple[Running, Running]:
    """A leader and a follower, halted by their origin."""
    origin.change("/blob", stall_after=200_000)
    leader = begin("fetch", url, "--digest", DIGEST, "-q")
    flying(store, published=196_608)
    follower = begin("fetch", url, "--digest", DIGEST, "-q")
    flying(store, published=196_608, followers=1)
    return leader, follower


def test_flights_are_listed(run: Run, flight: tuple[Running, Running], store: Store) -> None:
    leader, follower = (each.process.pid for each in flight)
    [told] = json.loads(run("ls", "--json")[1])["flights"]
    assert re.match(rf"pid {leader} \(.*python", told["leader"].pop("process"))
    assert re.match(rf"pid {follower} \(.*python", told["followers"][0].pop("process"))
    published = told.pop("published")
    assert 196_608 <= published <= 200_000
    assert re.fullmatch(r"\w+", told.pop("stream"))
    position = told["followers"][0].pop("position")
    assert told == {
        "key": DIGEST,
        "state": "streaming",
        "size": SIZE,
        "epoch": 0,
        "leader": {"pid": leader},
        "followers": [{"pid": follower, "lag": published - position}],
        "path": os.path.join(store.folder, "blobs", *DIGEST.split(":")),
    }

    code, out, errors = run("ls")
    assert code == 0
    assert re.search(
        rf"of|OF +STATE +EPOCH.*\n.* 293.0 KiB +streaming +0 +{leader} +1  {DIGEST}", out
    )
    assert errors == f"0 blobs of 0 bytes, 1 flight in {store.folder}\n"

    [told] = json.loads(run("top", "--json", "--interval", "0.1")[1])
    assert told["rate"] == 0
    assert told["eta"] is None
    assert (told["key"], told["leader"]["pid"]) == (DIGEST, leader)

    for once in ([], ["--once"]):
        code, out, errors = run("top", *once, "--interval", "0.1")
        assert (code, errors) == (0, "")
        lines = out.splitlines()
        assert lines[0] == f"1 flight, 0 bytes/s, in {store.folder}"
        assert lines[1:3] == ["", DIGEST]
        assert re.match(r"  streaming, 19\d.\d KiB of 293.0 KiB, 6\d %, 0 bytes/s$", lines[3])
        assert lines[4].startswith(f"  leads    pid {leader} (")
        assert re.match(rf"  follows  pid {follower} \(.*\), lag 0 bytes$", lines[5])


def test_orphans_are_listed(run: Run, flight: tuple[Running, Running], store: Store) -> None:
    for each in flight:
        each.process.kill()
        each.process.wait()
    [told] = json.loads(run("ls", "--json")[1])["flights"]
    assert (told["state"], told["leader"]) == ("orphaned", None)
    assert "  leads    nobody, just now\n" in run("top", "--interval", "0.1")[1]
    code, out, told = run("gc", "-v")
    assert code == 0
    assert out.splitlines()
    assert re.fullmatch(rf"\d+ leftovers? removed from {store.folder}\n", told)
    assert run("gc") == (0, "", f"0 leftovers removed from {store.folder}\n")


def test_a_rate_and_an_eta(begin: Begin, run: Run, store: Store, origin: Origin) -> None:
    slow = origin.serve("/slow", seed=1, size=4 << 20, rate=1 << 20)
    begin("fetch", slow, "-q")
    flying(store)
    [told] = json.loads(run("top", "--json", "--interval", "0.5")[1])
    assert 100_000 < told["rate"] < 4 << 20
    assert 0 < told["eta"] < 40


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 0)])
def test_top_on_a_terminal(
    show: Show, flight: tuple[Running, Running], origin: Origin, key: bytes, code: int
) -> None:
    top = show("top", "--interval", "0.1")
    top.wait_for(r"shmstream top: 1 flight, 0 bytes/s, in /")
    top.wait_for(rf"follows +pid {flight[1].process.pid}")
    origin.release()
    for each in flight:
        assert each.finish()[0] == 0
    top.wait_for(r"shmstream top: 0 flights, in /")
    top.press(key)
    assert top.finish() == code
    top.check()


def test_top_without_anything(run: Run, store: Store) -> None:
    assert run("top") == (0, f"0 flights, in {store.folder}\n", "")
    assert run("top", "--json")[1] == "[]\n"


# check, gc, evict.


def test_a_check(run: Run, url: str, store: Store) -> None:
    assert run("fetch", url, "--digest", DIGEST)[0] == 0
    well = f"1 blob verified in {store.folder}: all is well\n"
    assert run("check") == (0, "", well)
    assert run("check", "--json") == (0, "[]\n", well)
    path = store.blobs()[0][1].path
    with open(path, "r+b") as file:
        file.write(b"other bytes")
    quick = f"1 blob looked at in {store.folder}: all is well\n"
    assert run("check", "--quick") == (0, "", quick)
    code, out, told = run("check")
    assert code == 1
    assert re.fullmatch(rf"damaged: {path}: its digest is sha256:\w+\n", out)
    assert told == f"1 blob verified in {store.folder}: 1 finding\n"
    code, out, _ = run("check", "--json")
    assert code == 1
    [finding] = json.loads(out)
    assert finding["detail"].startswith("its digest is ")
    assert finding == {"kind": "damaged", "path": path, "detail": finding["detail"]}
    assert run("check", "--full")[:2] == (1, f"damaged: {path}: {finding['detail']}\n")


def test_partial_files_stay_for_a_while(begin: Begin, run: Run, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    fetch = begin("fetch", url, "-o", "-")
    fetch.read(190_000)
    fetch.process.kill()
    fetch.process.wait()
    code, out, _ = run("gc")
    assert code == 0
    assert ".shmstream-partial" not in out
    code, out, _ = run("gc", "--partial-age", "0s")
    assert code == 0
    assert len(re.findall(r"/named/\w+\.shmstream-partial\n", out)) == 1


def test_eviction(run: Run, store: Store, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).write_bytes(bytes(1000))
        store.fetch(name, tmp_path / name)
    first, second, third = (entry.path for _, entry in store.blobs())
    assert run("evict", "--max-bytes", "2KiB") == (
        0,
        f"{first}\n",
        f"1 blob removed from {store.folder}\n",
    )
    assert run("evict", "--max-bytes", "0")[1] == f"{second}\n{third}\n"
    assert run("evict", "--max-bytes", "0") == (0, "", f"0 blobs removed from {store.folder}\n")


@pytest.mark.parametrize("command", ["ls", "top", "check", "gc"])
def test_a_mistyped_store_is_not_made(run: Run, tmp_path: Path, command: str) -> None:
    nowhere = str(tmp_path / "nowhere")
    for folder in (nowhere, str(tmp_path)):
        code, out, told = run(command, "--store", folder)
        assert (code, out) == (1, "")
        assert told == f"Error: there is no store in {folder!r}; `shmstream fetch` makes one\n"
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_a_store_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, out, told = run("fetch", "file", "--store", "/proc/store")
    assert (code, out) == (1, "")
    assert told.startswith("Error: /proc/store cannot hold a store: ")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "chmod go-w" in run("fetch", "file", "--store", "open")[2]


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for cache, folder in (
        ("", "/home/me/.cache/shmstream"),
        ("relative", "/home/me/.cache/shmstream"),
        ("/cache", "/cache/shmstream"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        assert options.default_store() == folder


# Usage.


def test_sizes_and_durations() -> None:
    for text, value in (
        ("1234", 1234), ("0", 0), ("12b", 12), ("500MB", 500_000_000), ("10GiB", 10 << 30),
        ("10g", 10 << 30), ("1.5 KiB", 1536), ("2kb", 2000), ("1T", 1 << 40),
    ):  # fmt: skip
        assert options.size(text) == value
    for text, value in (("90", 90), ("90s", 90), ("1.5m", 90), ("12h", 43200), ("7d", 604800)):
        assert options.duration(text) == value


def test_formatting() -> None:
    assert [formatting.left(each) for each in (None, 0, 3.2, 61, 3723)] == [
        "", "0:00", "0:04", "1:01", "1:02:03",
    ]  # fmt: skip
    assert formatting.printable("ä b\t\x1b[2J") == "ä b\\t\\x1b[2J"
    assert formatting.in_columns([("a", "1"), ("bcd", "22")], right=[1]) == "a     1\nbcd  22"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fetch"], "Missing argument 'URL'"),
        (["fetch", "http://"], "not a valid http or https URL"),
        (["fetch", "x", "--digest", "sha256:12"], "'sha256:12' is no digest"),
        (["fetch", "x", "--digest", DIGEST, "--key", "y"], "--digest or --key, not both"),
        (["fetch", "x", "--key", "sha256:12"], "a key that begins with 'sha256:'"),
        (["fetch", "x", "--max-bytes", "1 bit"], "'1 bit' is no size, such as 1234"),
        (["fetch", "http://x/", "--header", "nothing"], "not of the form 'NAME: VALUE'"),
        (["fetch", "http://x/", "--header", "Range: bytes=1-"], "not a header to set: 'Range'"),
        (["fetch", "x", "--header", "A: b"], "--header goes with an http or https URL"),
        (["fetch", "x", "-o", "."], "'.' is a directory"),
        (["evict"], "Missing option '--max-bytes'"),
        (["gc", "--partial-age", "1y"], "'1y' is no duration, such as 90s"),
        (["top", "--interval", "0"], "0.0 is not in the range"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
        (["land"], "No such command 'land'"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], told: str) -> None:
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert told in errors
    assert "Usage: shmstream" in errors


def test_help(run: Run, begin: Begin) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert re.findall(r"^  (\w+)  +[A-Z].*\.$", out, re.M) == list(COMMANDS)
    assert "130" in out
    for command, running in [(command, begin(command, "-h")) for command in COMMANDS]:
        code, text, told = running.finish()
        out = text.decode()
        assert (code, told) == (0, "")
        assert out.startswith(f"Usage: shmstream {command} ")
        assert all(len(line) <= 88 for line in out.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run: Run, shell: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, script, told = run("completion", shell)
    assert (code, told) == (0, "")
    assert "_SHMSTREAM_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    if shell == "bash":
        monkeypatch.setenv("_SHMSTREAM_COMPLETE", "bash_complete")
        for line, found in (("fe", "plain,fetch"), ("ls --js", "plain,--json")):
            monkeypatch.setenv("COMP_WORDS", f"shmstream {line}")
            monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
            assert run()[1].split() == [found]


def test_an_extra_that_is_not_there(store: Store, tmp_path: Path) -> None:  # noqa: ARG001
    program = "import sys; sys.modules['urllib3'] = None; from shmstream.__main__ import main"
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [*PYTHON, "-c", f"{program}; main()", "fetch", "http://127.0.0.1/x"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: an HTTP source needs urllib3: pip install 'shmstream[http]'\n"
