"""The benchmark runs, so that it cannot rot; what it measures here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import congestion, profile
from bench.peers.measure import PROFILED
from bench.stream import in_c
from tests.support.nginx import needed
from tests.support.programs import program
from tests.support.root import needs_namespaces, needs_root

ROOT = Path(__file__).parents[2]


LONGEST = 600  # s; `bench.peers` takes 54 on an idle machine, and more on one that is busy
pytestmark = pytest.mark.timeout(LONGEST + 60)


def measure(module: str, *arguments: object) -> str:
    """Run a measurement in short: it succeeds, and prints what is returned."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def page_with_marks(folder: Path, mark: str) -> Path:
    page = folder / "page.md"
    page.write_text(f"<!-- {mark}: begin --> <!-- {mark}: end -->", encoding="utf-8")
    return page


def test_stream_in_short(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    page = page_with_marks(tmp_path, "bench.stream")
    wanted = ["wake-up", "publish", "attach", "memory"]
    folders = ["--json", report, "--docs", page, "--dir", tmp_path]
    said = measure("bench.stream", *folders, "--only", *wanted)
    told = json.loads(report.read_text(encoding="utf-8"))
    sections = {"wake-up", "publish", "attach+detach", "memory"}
    assert {row["section"] for row in told["rows"]} == sections
    assert {"date", "processor", "cores", "kernel", "python"} <= set(told["machine"])
    assert "wake-up" in said
    for case in ("published -> read", "published -> read / the least in C"):
        assert f"| wake-up: {case}, p50 |" in page.read_text(encoding="utf-8")
    assert set(tmp_path.iterdir()) == {report, page}


def test_one_wake_up_of_a_reader_takes_few_calls(tmp_path: Path) -> None:
    """A count of calls is no time: it is the same on a machine that is busy."""
    report = tmp_path / "report.json"
    measure("bench.stream", "--json", report, "--dir", tmp_path, "--only", "calls")
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"]
    calls = {row["case"]: row["ours"] for row in rows}
    assert 10 <= calls.pop("one wake-up of a reader") <= 22
    assert all(each > 20 for each in calls.values()), "asyncio's own calls, and ours"
    assert len(calls) == 2


def test_a_program_in_c_is_beside_the_wake_up_and_the_publish(tmp_path: Path) -> None:
    """It wakes as often as it is told, each time after it was rung, and ends all its processes."""
    program("gcc", "gcc")
    beside = in_c.find(tmp_path)
    assert beside is not None
    processors = sorted(os.sched_getaffinity(0))
    for places in ((), (processors[0], processors[-1])):
        pinged, least = beside.wake(10, places)
        assert (len(pinged), len(least)) == (10, 10)
        assert min(pinged + least) > 0
    for reading in (False, True):
        times = beside.crowd(40, 3, reading=reading)
        assert len(times) == 3
        assert all(cpu > 0 for _, cpu in times)
    assert [each.name for each in tmp_path.iterdir()] == ["in_c"]


@pytest.fixture
def has_nginx() -> None:
    needed()


@pytest.mark.usefixtures("has_nginx")
def test_flight_in_short(tmp_path: Path) -> None:
    report, charts = tmp_path / "report.json", tmp_path / "charts"
    said = measure("bench.flight", "--json", report, "--dir", tmp_path, "--charts", charts)
    told = json.loads(report.read_text(encoding="utf-8"))
    assert {row["section"] for row in told["rows"]} == {"share", "single", "open", "takeover"}
    assert {each.name for each in charts.iterdir()} == {"share.png", "takeover.png"}
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in charts.iterdir())
    assert "takeover" in said
    assert [each.name for each in tmp_path.iterdir() if each not in (report, charts)] == []


@pytest.mark.usefixtures("has_nginx")
def test_peers_in_short(tmp_path: Path) -> None:
    temporary, docs = tmp_path / "temporary", tmp_path / "docs"
    temporary.mkdir()
    docs.mkdir()
    wanted = ["hits-small", "many", "small", "leaves"]
    measure(
        "bench.peers",
        "--peers",
        "shmstream",
        "nginx-lock",
        "--only",
        *wanted,
        "--docs",
        docs,
        "--dir",
        temporary,
        "--congestion",
        congestion.current(),  # other tests use connections, too
    )
    page = (docs / "benchmarks.md").read_text(encoding="utf-8")
    told = {
        path.stem: json.loads(path.read_text()) for path in (docs / "benchmarks").glob("*.json")
    }
    hits, faults = told["hits-small"], told["faults"]
    assert {(each["peer"], each["turn"]) for each in hits["samples"]} == {
        (peer, turn)
        for peer in ("shmstream", "nginx-lock", "shmstream-nginx")
        for turn in (0, 1, *([PROFILED] if profile.is_possible() else []))
    }
    assert {each["peer"] for each in told["many"]["samples"]} == {
        *("shmstream", "nginx-lock", "shmstream-name", "raw")
    }
    assert {each["peer"] for each in told["small"]["samples"]} == {
        *("shmstream", "nginx-lock", "floor")
    }
    assert told["many"]["hashing"] > 0
    # nginx has a blob a moment after its client has it, and asks again if somebody is quicker.
    assert {each["gets"] for each in hits["samples"] if each["peer"] != "nginx-lock"} == {0}
    assert {(each["peer"], each["right"], each["extra"]) for each in faults["outcomes"]} == {
        ("shmstream", 4, 0),
        ("nginx-lock", 4, 0),
    }
    assert {"date", "processor", "cores", "kernel"} <= set(hits["machine"])
    assert "nginx, lock" in page
    assert "A quick run" in page
    assert "many: CPU per GiB served (against raw)" in page
    assert "small: CPU (against floor)" in page
    assert "faults.png" in page
    assert list(temporary.iterdir()) == []


def caches(family: str, folder: Path, *ways: str) -> dict[str, list[str]]:
    """What `bench.caches` writes into a page: the cells of each way, by its title."""
    page = folder / "page.md"
    marks = [f"<!-- bench.caches {family}: {each} -->" for each in ("begin", "end")]
    page.write_text("before {} {} after".format(*marks))
    wanted = ["--ways", *ways] if ways else []
    short = ["--size", "2", "--processes", "2"]
    measure("bench.caches", family, "--docs", page, "--dir", folder, *short, *wanted)
    told = page.read_text(encoding="utf-8")
    assert told.startswith("before <!--")
    assert told.endswith("--> after")
    assert list(folder.iterdir()) == [page]
    lines = [line.strip("| ").split(" | ") for line in told.splitlines() if line[:3] == "| `"]
    return {title: cells for title, *cells in lines}


def test_fsspec_in_short(tmp_path: Path) -> None:
    told = caches("fsspec", tmp_path)
    names = ("shmstream", "filecache", "simplecache", "blockcache")
    assert list(told) == [f"`{each}::`" for each in names]
    assert told["`shmstream::`"][1] == "1", "one GET"


def test_fetchers_in_short(tmp_path: Path) -> None:
    program("aria2c", "aria2")
    told = caches("fetchers", tmp_path, "hub", "pooch", "aria2c-flock")
    assert [cells[1] for cells in told.values()] == ["1", "1", "2", "1"], "GETs"
    assert [cells[4] for cells in told.values()] == ["2 of 2"] * 4, "right"
    handed_on = {title: cells[-1] for title, cells in told.items()}
    assert handed_on == {
        "`Store.open`": "0 of 2",
        "`huggingface_hub`": "2 of 2",
        "`pooch.retrieve`": "0 of 2",
        "`flock`, `aria2c`": "0 of 2",
    }


def test_the_hub_through_a_mirror_in_short(tmp_path: Path) -> None:
    _, cells = caches("fetchers", tmp_path, "hub-mirror").values()
    assert (cells[1], cells[4], cells[-1]) == ("1", "2 of 2", "0 of 2")


def connections(folder: Path, mark: str, *options: object) -> str:
    """What `bench.connections` writes into a page, between marks."""
    page = page_with_marks(folder, mark)
    short = ["--size", "16", "--connections", "2"]
    measure("bench.connections", "--docs", page, "--dir", folder, *short, *options)
    assert list(folder.iterdir()) == [page]
    return page.read_text(encoding="utf-8")


def test_connections_in_short(tmp_path: Path) -> None:
    program("aria2c", "aria2")
    told = connections(tmp_path, "bench.connections", "--only", "throttled,sources,kills")
    assert "| throttled: aria2c -x2 |" in told
    assert "of aria2c's; first byte" in told
    assert "later than over one, at most" in told
    assert "times as fast" in told
    assert "MiB sent twice" in told


def test_connections_to_a_server_far_away_in_short(tmp_path: Path) -> None:
    program("aria2c", "aria2")
    options = ["--only", "throttled", "--round-trip", "50"]
    told = connections(tmp_path, "bench.connections, far", *options)
    assert "50 ms of round trip" in told
    [row] = [line for line in told.splitlines() if "shmstream, 1 connection" in line]
    assert int(row.split(" | ")[1].removesuffix(" ms")) >= 100, "a connection, and an answer"


@needs_root
def test_a_cluster_in_short(tmp_path: Path) -> None:
    """Nodes in network namespaces with limited links; one is killed while it pulls for all."""
    for name in ("ip", "tc"):
        program(name, "iproute2")
    program("redis-server", "redis-server")
    needs_namespaces()
    report, before = tmp_path / "report.json", namespaces()
    names = ("together, fan 2", "together, then another blob", "leading node is killed")
    wanted = [option for name in names for option in ("--only", name)]
    measure("bench.cluster", "--nodes", 3, "--size", 4, "--json", report, *wanted)
    outcomes = [each for [each] in json.loads(report.read_text(encoding="utf-8"))]
    assert [each["name"] for each in outcomes[:2]] == [*names[:2]]
    for each in outcomes[:2]:
        assert (each["right"], each["cut"], each["gets"], each["bytes"]) == (6, 0, 1, 1.0)
    killed = outcomes[2:]
    assert [(each["right"], each["cut"]) for each in killed] == [(4, 0), (4, 0)]
    assert namespaces() == before


def namespaces() -> str:
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return told.stdout


def test_many_in_short(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    others = set(os.listdir("/dev/shm"))
    measure("bench.many", "--json", report, "--dir", tmp_path)
    told = json.loads(report.read_text(encoding="utf-8"))
    sections = {row["section"] for row in told["rows"]}
    assert sections == {"crowd", "store", "flights", "clients"}
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]
    assert set(os.listdir("/dev/shm")) == others


def test_what_the_time_is_spent_on() -> None:
    """Lines as `perf script` prints them: a stack for each kind of work, and an idle processor."""
    kernel, python, crypto = (
        "[kernel.kallsyms]",
        "/usr/lib/libpython3.so",
        "/usr/lib/libcrypto.so.3",
    )
    stacks = {
        profile.SENDS: [("tcp_sendmsg", kernel), ("do_splice", kernel),
                        ("__x64_sys_sendfile64", kernel), ("do_syscall_64", kernel),
                        ("sendfile64", "/usr/lib/libc.so.6")],
        profile.RECEIVES: [("do_readv", kernel), ("do_syscall_64", kernel)],
        profile.WAITS: [("schedule", kernel), ("__x64_sys_futex", kernel)],
        profile.FILES: [("ksys_lseek", kernel)],
        profile.KERNEL: [("handle_mm_fault", kernel), ("_PyEval_EvalFrameDefault", python)],
        profile.HASHES: [("[unknown]", crypto), ("_hashlib_update", python)],
        profile.PROGRAM: [("operator new(unsigned long)", python)],
    }  # fmt: skip
    lines = ["    0 ", f"\tffffffff821f2c2b default_idle ({kernel})", ""]
    for stack in stacks.values():
        lines.append("  4711 ")
        lines += [f"\tffffffff821f2c2b {name} ({place})" for name, place in stack]
        lines.append("")
    found = list(profile.stacks_of(f"{line}\n" for line in lines))
    assert [pid for pid, _ in found] == [0] + [4711] * len(stacks)
    assert [profile.kind_of(stack) for _, stack in found[1:]] == list(stacks)
    assert tuple(stacks) == profile.KINDS
