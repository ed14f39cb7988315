"""The access log: one short line for each response, and nobody waits for its reader."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from shmstream.registry.ops import access_log
from shmstream.registry.ops.access_log import AccessLog, Entry
from shmstream.registry.ops.metrics import Metrics
from shmstream.registry.ops.middleware import Response
from shmstream.registry.ops.names import Names
from shmstream.upstreams.notes import Notes
from tests.support.commands import PYTHON, ROOT
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.serving import Serve


def entry(text: str) -> Entry:
    """A response to a request that has that text everywhere."""
    return Entry(
        ended=time.time(), client=text, method="GET", path=text, namespace=text,
        wanted_range=text, user_agent=text, status=200, sent=1 << 40, complete=False,
        duration=1e6, ttfb=1e6, route="blob", cache="flight",
    )  # fmt: skip


def test_no_line_is_longer_than_a_pipe_takes_at_once() -> None:
    odd = "\x00\xff\U0001f600" * 2000
    line = entry(odd).line(lost=10**9)
    assert len(line) <= 4096
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["path"] == odd[:64]


def test_what_ends_while_the_log_is_closed_or_later_is_written_once() -> None:
    """A timer that was due before, and responses that end afterwards: none meets a closed log."""
    reading, writing = os.pipe()
    errors: list[dict[str, Any]] = []
    lines: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        lost: list[int] = []
        log = AccessLog(lost.append, writing)
        stream = asyncio.StreamReader()
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb")
        )
        log.add(entry("before"))
        closing = asyncio.ensure_future(log.close())
        await asyncio.sleep(0)
        log.add(entry("meanwhile"))
        await closing
        log.add(entry("after"))
        fired = loop.create_future()
        loop.call_later(access_log._INTERVAL, fired.set_result, None)  # after the log's own timers
        await fired
        log.add(entry("much later"))
        async with asyncio.timeout(PATIENCE):
            lines.extend([await stream.readline() for _ in range(4)])
        await log.close()
        pipe.close()
        assert lost == []

    try:
        asyncio.run(main())
    finally:
        os.close(writing)
    assert [json.loads(line)["path"] for line in lines] == [
        "before", "meanwhile", "after", "much later",
    ]  # fmt: skip
    assert errors == []


def test_the_access_log(serve: Serve) -> None:
    serving = serve("--workers", "1")
    agent = 'a "strange"\tone é' + "x" * 5000
    serving.ask("/a%0Ab%22%C3%A9?password=secret", User_Agent=agent, Authorization="Basic c2VjcmV0")
    serving.ask("/readyz?ns=docker.io&token=secret", "HEAD", Range="bytes=0-1", Cookie="secret")
    first, second = serving.accesses(lambda lines: len(lines) == 2)
    assert first["path"] == '/a\nb"é'
    assert (first["method"], first["status"], first["bytes"]) == ("GET", 404, 10)
    assert first["user_agent"] == agent[:1000]
    assert (first["client"], first["complete"]) == ("127.0.0.1", True)
    assert 0 < first["ttfb"] <= first["duration"] < PATIENCE
    assert (second["route"], second["bytes"], second["ns"]) == ("ready", 0, "docker.io")
    assert second["range"] == "bytes=0-1"
    text = (serving.folder / "serve.out").read_text()
    assert "secret" not in text + serving.log
    assert "c2VjcmV0" not in text
    assert text.isascii()


def test_no_access_log(serve: Serve) -> None:
    serving = serve("--workers", "1", "--no-access-log")
    assert serving.ask("/healthz").status == 200
    assert serving.stop() == 0
    assert (serving.folder / "serve.out").read_text() == ""


def test_a_log_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    """Its pipe is full from the beginning."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    command = [*PYTHON, "-m", "shmstream", "serve", "--upstream", "http://127.0.0.1:1"]
    command += ["--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0", "--workers", "1"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=writer, stderr=log
        )
        try:
            wait_until(lambda: " with 1 worker" in Path(log.name).read_text())
            port = int(Path(log.name).read_text().partition(" with")[0].rpartition(":")[2])
            for _ in range(50):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                connection.request("GET", "/healthz")
                assert connection.getresponse().read() == b"alive\n"
                connection.close()
            process.terminate()
            assert process.wait(PATIENCE) == 0, "not held up either"
            assert "nobody reads the access log" in Path(log.name).read_text()
        finally:
            process.kill()
            process.wait()
            os.close(reader)
            os.close(writer)


@pytest.mark.parametrize(("method", "sent", "complete"), [
    ("GET", [b"da", b"ta"], True), ("GET", [b"da"], False), ("HEAD", [], False),
    ("GET", [b"data", None], True), ("HEAD", [None], True),
])  # fmt: skip
def test_a_body_that_was_sent_is_complete(
    method: str, sent: list[bytes | None], complete: bool, tmp_path: Path
) -> None:
    """Also if the client has hung up with it, before the end was told (None)."""

    async def send(_: Any) -> None:
        pass

    async def main() -> bool:
        names = Names(Notes(str(tmp_path), "names"))
        response = Response({"method": method, "path": "/"}, send, Metrics(), names)
        headers = [(b"content-length", b"4")]
        await response.send({"type": "http.response.start", "status": 200, "headers": headers})
        for each in sent:
            more = each is not None
            await response.send(
                {"type": "http.response.body", "body": each or b"", "more_body": more}
            )
        return response.complete

    assert asyncio.run(main()) is complete
