"""`check`, `gc` and `evict`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from shmstream import Store
from tests.cli.conftest import DIGEST, Begin, Run
from tests.support.commands import Running
from tests.support.origin import Origin


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
