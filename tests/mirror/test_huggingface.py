"""The real `huggingface_hub` through a mirror of a Hub that is faked, with its real heads."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmstream.upstreams.notes import Notes
from tests.support.hub import TOKEN, Hub
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.mirrors import Mirrored
from tests.support.quirks import Asked, Reply
from tests.support.roles import content

FETCH = """
import json, os, sys
from huggingface_hub import hf_hub_download, snapshot_download
repo, *files = sys.argv[1:]
paths = {file: hf_hub_download(repo, file) for file in files}
if not files:
    folder = snapshot_download(repo)
    paths = {name: os.path.join(folder, name) for name in sorted(os.listdir(folder))}
print(json.dumps(paths))
"""

RESUME = """
import json, sys
from huggingface_hub.file_download import http_get
path, url = sys.argv[1:]
with open(path, "r+b") as file:
    file.seek(300_000)
    http_get(url, file, resume_size=300_000, expected_size=2_000_000)
print(json.dumps({"begun": path}))
"""


def client(
    mirrored: Mirrored, home: Path, *arguments: str, token: str = "", program: str = FETCH
) -> subprocess.Popen[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": f"{mirrored.url}/hf",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_SHARED_BLOBS": "1",
        "HF_HUB_ETAG_TIMEOUT": str(int(PATIENCE)),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(int(PATIENCE)),
        **({"HF_TOKEN": token} if token else {}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_of(process: subprocess.Popen[str]) -> dict[str, bytes]:
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return {name: Path(path).read_bytes() for name, path in json.loads(out).items()}


def test_snapshots_in_several_processes_at_once(
    mirrored: Mirrored, hub: Hub, tmp_path: Path
) -> None:
    files = {"config.json": b'{"a": 1}', "model.bin": content(11, 3_000_000), "z.txt": b"z" * 900}
    hub.add("org/model", files)
    running = [client(mirrored, tmp_path / str(number), "org/model") for number in range(2)]
    assert [files_of(each) for each in running] == [files] * 2
    for part in ("z.txt", hashlib.sha256(files["model.bin"]).hexdigest()):
        gets = [each for each in hub.gets(part) if "/resolve/" not in each.path]
        assert len(gets) == 1, gets
    assert f"sha256:{hashlib.sha256(files['model.bin']).hexdigest()}" in mirrored.store
    assert not hub.quirks.requests("xet")
    seen = len(hub.quirks.asked)
    assert files_of(client(mirrored, tmp_path / "third", "org/model")) == files
    later = hub.quirks.asked[seen:]
    assert all(each.path.startswith("/api/models") for each in later), later  # no file is asked for


def test_all_workers_are_killed_after_a_branch_has_moved(mirrored: Mirrored, hub: Hub) -> None:
    """The client gets the rest of the file that it was promised."""
    old = content(23, 30_000_000)
    hub.add("org/moved", {"a.bin": old})
    connection, response = mirrored.serving.open("/hf/org/moved/resolve/main/a.bin")
    early = response.read(200_000)
    wait_until(lambda: not mirrored.store.flights())
    hub.add("org/moved", {"a.bin": b"new"})
    for pid in mirrored.serving.workers():
        os.kill(pid, signal.SIGKILL)
    assert early + response.read() == old
    connection.close()
    wait_until(lambda: len(mirrored.serving.workers()) == 2)


def test_heads_and_revisions(mirrored: Mirrored, hub: Hub) -> None:
    old, new = content(21, 20_000), content(22, 20_000)
    first = hub.add("org/moves", {"a.bin": old, "b.txt": b"one"})

    def head(name: str, revision: str = "main") -> dict[str, str]:
        return mirrored.ask(f"/hf/org/moves/resolve/{revision}/{name}", "HEAD").headers

    told = head("a.bin")
    digest = hashlib.sha256(old).hexdigest()
    assert (told["x-repo-commit"], told["x-linked-size"]) == (first, "20000")
    assert told["x-linked-etag"] == told["etag"] == f'"{digest}"'
    assert (told["content-length"], "location" in told) == ("20000", False)
    assert not any("xet" in name or "xet" in value for name, value in told.items())
    assert head("b.txt")["content-length"] == "3"
    assert not hub.cdn.asked  # nothing was downloaded
    assert mirrored.ask("/hf/org/moves/resolve/main/a.bin").body == old
    second = hub.add("org/moves", {"a.bin": new, "b.txt": b"two!"})
    assert head("a.bin")["x-repo-commit"] == second
    assert mirrored.ask("/hf/org/moves/resolve/main/a.bin").body == new
    assert mirrored.ask(f"/hf/org/moves/resolve/{first}/a.bin").body == old
    assert mirrored.ask("/hf/org/moves/resolve/main/b.txt").body == b"two!"
    assert mirrored.ask(f"/hf/org/moves/resolve/{first}/b.txt").body == b"one"
    part = mirrored.ask("/hf/org/moves/resolve/main/a.bin", Range="bytes=10000-")
    assert (part.status, part.body) == (206, new[10_000:])
    assert len(hub.cdn.asked) == 2


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("org/none/resolve/main/a", 401, "RepoNotFound"),
        ("org/there/resolve/main/none", 404, "EntryNotFound"),
        ("org/there/resolve/none/a", 404, "RevisionNotFound"),
        ("org/gated/resolve/main/a", 401, "GatedRepo"),
    ],
)
def test_refusals_say_what_the_hub_says(
    mirrored: Mirrored, hub: Hub, path: str, status: int, code: str
) -> None:
    hub.add("org/there", {"a": b"a"})
    hub.add("org/gated", {"a": b"a"}, is_gated=True)
    for method in ("HEAD", "GET"):
        answer = mirrored.ask(f"/hf/{path}", method)
        assert (answer.status, answer.headers["x-error-code"]) == (status, code)


def test_a_token_opens_a_gated_repository_and_is_kept_nowhere(
    mirrored: Mirrored, hub: Hub, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "secret.bin": content(31, 50_000)}
    hub.add("org/secret", files, is_gated=True)
    assert files_of(client(mirrored, tmp_path / "a", "org/secret", token=TOKEN)) == files
    assert any(each.authorization == f"Bearer {TOKEN}" for each in hub.quirks.asked)
    assert not any(each.authorization for each in hub.cdn.asked)
    for name in files:  # it is here by now, and is for nobody without a token all the same
        path = f"/hf/org/secret/resolve/main/{name}"
        assert mirrored.ask(path).status == 401
        assert mirrored.ask(path, Authorization="Bearer wrong").status == 401
        assert mirrored.ask(path, Authorization=f"Bearer {TOKEN}").body == files[name]
    assert len(hub.cdn.asked) == 1
    for folder in (mirrored.serving.store, mirrored.serving.temporary):
        for file in folder.rglob("*"):
            assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    assert TOKEN not in mirrored.serving.log
    hub.add("org/open", {"open.bin": content(32, 50_000)})
    assert mirrored.ask("/hf/org/open/resolve/main/open.bin").status == 200
    names = Notes(str(mirrored.serving.store), "names")
    wait_until(lambda: "org/open/open.bin" in {each.text for each in names.all()})
    assert not [each for each in names.all() if "secret" in each.text], "everybody may see names"


@pytest.mark.parametrize("is_gated", [True, False])
def test_who_sees_the_names_of_files_on_the_status_page(
    mirrored: Mirrored, hub: Hub, is_gated: bool
) -> None:
    """Strangers see those of public files alone: in flight, and when they are here."""
    repo = f"org/named-{is_gated}"
    files = {
        "small-name.json": b"s" * (5000 + is_gated),  # sizes that no other blob of the store has
        "large-name.bin": content(33 + is_gated, 500_000 + is_gated),
    }
    hub.add(repo, files, is_gated=is_gated)
    arrives = threading.Event()

    def held(script: Callable[[Asked], Reply]) -> Callable[[Asked], Reply]:
        def answer(asked: Asked) -> Reply:
            reply = script(asked)
            if asked.method != "GET" or reply.status != 200:
                return reply
            return replace(reply, pieces=in_pieces(reply, arrives))

        return answer

    hub.quirks.script, hub.cdn.script = held(hub.quirks.script), held(hub.cdn.script)
    headers = {"Authorization": f"Bearer {TOKEN}"} if is_gated else {}
    for name, data in files.items():
        path = f"/hf/{repo}/resolve/main/{name}"
        connection, response = mirrored.serving.open(path, **headers)
        response.read(10)
        assert len(mirrored.store.flights()) == 1
        for _ in range(4):  # whichever worker is asked
            told = first_event(mirrored)
            assert len(told["flights"]) == 1
            assert (name in json.dumps(told)) is not is_gated, told
            assert (repo in json.dumps(told)) is not is_gated, told
        arrives.set()
        response.read()
        connection.close()
        wait_until(lambda: not mirrored.store.flights())
        assert (name in json.dumps(event_with_blob(mirrored, len(data)))) is not is_gated
        arrives.clear()


def in_pieces(reply: Reply, arrives: threading.Event) -> Iterator[bytes]:
    """The answer, of which the second half comes when that is set."""
    half = len(reply.body) // 2
    yield reply.head() + reply.body[:half]
    assert arrives.wait(PATIENCE)
    yield reply.body[half:]


def first_event(mirrored: Mirrored) -> dict[str, Any]:
    """What the status page shows now."""
    connection, response = mirrored.serving.open("/events")
    while not (line := response.readline()).startswith(b"data: "):
        assert line, "the events have ended"
    connection.close()
    told: dict[str, Any] = json.loads(line[6:])
    return told


def event_with_blob(mirrored: Mirrored, size: int) -> dict[str, Any]:
    """What the status page shows when the store is counted that has a blob of this size."""
    told: dict[str, Any] = {"recent": []}

    def is_counted() -> bool:
        told.update(first_event(mirrored))
        return any(each["size"] == size for each in told["recent"])

    wait_until(is_counted)
    return told


def test_one_download_of_a_file_that_breaks_and_of_a_client_that_comes_again(
    mirrored: Mirrored, hub: Hub, tmp_path: Path
) -> None:
    """The CDN cuts the first answer; a client goes on with what it has."""
    files = {"big.bin": content(41, 2_000_000)}
    hub.add("org/breaks", files)
    usual = hub.cdn.script

    def script(asked: Asked) -> Reply:
        reply = usual(asked)
        is_first = len(hub.cdn.asked) == 1
        return Reply(reply.status, reply.headers, reply.body, cut=1_000_000) if is_first else reply

    hub.cdn.script = script
    begun = tmp_path / "begun"
    begun.write_bytes(files["big.bin"][:300_000])
    url = f"{mirrored.url}/hf/org/breaks/resolve/main/big.bin"
    got = files_of(client(mirrored, tmp_path, str(begun), url, program=RESUME))
    assert got == {"begun": files["big.bin"]}
    assert files_of(client(mirrored, tmp_path, "org/breaks", "big.bin")) == files
    assert [each.headers.get("range") for each in hub.cdn.asked] == [None, "bytes=1000000-"]
    rest = "bytes=300000-"
    mirrored.serving.accesses(lambda lines: rest in {each.get("range") for each in lines})


def test_a_cdn_at_the_hub_itself_that_refuses_a_head(mirrored: Mirrored, hub: Hub) -> None:
    data = content(81, 30_000)
    hub.add("org/inside", {"i.bin": data})
    usual, hub.cdn.url = hub.quirks.script, hub.quirks.url

    def script(asked: Asked) -> Reply:
        if not asked.path.startswith("/repos/"):
            return usual(asked)
        return Reply(403) if asked.method == "HEAD" else Reply(200, {}, data)

    hub.quirks.script = script
    try:
        head = mirrored.ask("/hf/org/inside/resolve/main/i.bin", "HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "30000")
        assert mirrored.ask("/hf/org/inside/resolve/main/i.bin").body == data
    finally:
        hub.cdn.url = f"http://127.0.0.1:{hub.cdn.port}"


def test_wrong_bytes_never_complete(mirrored: Mirrored, hub: Hub) -> None:
    data = content(51, 200_000)
    hub.add("org/wrong", {"w.bin": data})
    usual = hub.cdn.script
    hub.cdn.script = lambda asked: Reply(200, usual(asked).headers, b"x" + data[1:])
    answer = mirrored.serving.open("/hf/org/wrong/resolve/main/w.bin")
    with pytest.raises(Exception, match=r"IncompleteRead|reset"):
        answer[1].read()
        raise AssertionError("complete")
    answer[0].close()
    hub.cdn.script = usual
    wait_until(lambda: not mirrored.store.flights())
    assert mirrored.ask("/hf/org/wrong/resolve/main/w.bin").body == data


def test_the_hub_is_away(mirrored: Mirrored, hub: Hub) -> None:
    data = content(61, 30_000)
    hub.add("org/away", {"a.bin": data})
    path = "/hf/org/away/resolve/main/a.bin"
    assert mirrored.ask(path).body == data
    assert mirrored.ask("/hf/api/models/org/away/revision/main").status == 200
    hub.quirks.script = lambda _: Reply(resets=True)
    again = mirrored.ask(path)
    assert (again.body, again.headers["warning"][:3]) == (data, "110")
    assert mirrored.ask(path, "HEAD").headers["x-linked-size"] == "30000"
    assert mirrored.ask("/hf/api/models/org/away/revision/main").status == 200
    assert mirrored.ask("/hf/org/away/resolve/main/never-seen").status == 502


def test_what_the_api_says_leads_to_the_mirror(mirrored: Mirrored, hub: Hub) -> None:
    commit = hub.add("org/api", {"a.bin": content(71, 20_000), "b": b"b", "c": b"c"})
    answer = mirrored.ask(f"/hf/api/models/org/api/tree/{commit}?recursive=true")
    assert [each["path"] for each in json.loads(answer.body)] == ["a.bin", "b"]
    assert b"xet" not in answer.body
    here = f"<{mirrored.url}/hf/api/models/org/api/tree/{commit}?recursive=true&cursor=2>"
    assert answer.headers["link"] == f'{here}; rel="next"'

    def script(asked: Asked) -> Reply:
        told = {"Content-Type": "application/json", "X-Asked": asked.headers["content-type"]}
        return Reply(200, told, json.dumps([{"path": asked.body, "xetHash": "x"}]).encode())

    hub.quirks.script = script
    connection = mirrored.serving.connect()
    connection.request(
        "POST",
        f"/hf/api/models/org/api/paths-info/{commit}",
        b"paths=a.bin",
        {"Content-Type": "application/x-www-form-urlencoded"},
    )
    response = connection.getresponse()
    assert json.loads(response.read()) == [{"path": "paths=a.bin"}]
    connection.close()
    assert mirrored.ask("/hf/api/repos/create", "POST").status == 405
