"""`ls`: blobs and flights, as lines and as JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from shmstream import Store
from tests.cli.conftest import DIGEST, SIZE, Run
from tests.support.commands import Running


def test_a_list(run: Run, url: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"seven..")
    assert run("fetch", url, "--digest", DIGEST)[0] == 0
    assert run("fetch", "file", "--key", "a\x1b[31m\nkey")[0] == 0
    code, out, told = run("ls")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["SIZE", "LAST", "USED", "BLOB", "SOURCE"]
    when = r"\d+-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"293.0 KiB  {when}  {DIGEST}  {re.escape(url)}", lines[0])
    path = re.escape(str(tmp_path / "file"))
    assert re.fullmatch(rf"  7 bytes  [\d-]+ [\d:]+  a\\x1b\[31m\\nkey +{path}", lines[1])
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
        "source": url,
        "pinned": False,
        "path": os.path.join(store.folder, "blobs", *DIGEST.split(":")),
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["last_used"])


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
    assert re.search(rf"OF +STATE +EPOCH.*\n.* 293.0 KiB +streaming +0 +{leader} +1  {DIGEST}", out)
    assert errors == f"0 blobs of 0 bytes, 1 flight in {store.folder}\n"
