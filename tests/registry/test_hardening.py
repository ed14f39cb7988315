"""What one client cannot do to the others, or to the servers behind this one."""

from __future__ import annotations

import asyncio
import base64
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.asgi.messages import Message
from shmstream.errors import SourceError
from shmstream.mirror.mirrors import _send_safely
from shmstream.registry.api import access
from shmstream.registry.api.access import Access
from shmstream.registry.api.distribution import Registry
from shmstream.registry.api.errors import Refusal
from shmstream.registry.settings import Settings, Upstream
from shmstream.registry.upstream.credentials import Credential
from shmstream.registry.upstream.tokens import Tokens
from tests.support.interpreters import wait_until
from tests.support.quirks import Quirks, Reply

PASSWORD = "$2b$04$" + "a" * 53


def basic(pair: str) -> bytes:
    return b"Basic " + base64.b64encode(pair.encode())


def known(tmp_path: Path, **files: str) -> Access:
    given: dict[str, Any] = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        given[name] = str(tmp_path / name)
    found = Access.of(Settings((Upstream(None, "http://a.example"),), "/s", **given))
    assert found is not None
    return found


def test_no_mirrored_server_gets_a_password_of_this_cache(tmp_path: Path) -> None:
    who = known(tmp_path, tokens="ci a-token-of-the-ci\n")

    def kept(*lines: bytes) -> list[bytes]:
        headers = [(b"accept", b"x"), *((b"Authorization", each) for each in lines)]
        scope: dict[str, Any] = {"headers": headers}
        asyncio.run(who.keep_ours(scope))
        return [value for name, value in scope["headers"] if name != b"accept"]

    ours, others = b"Bearer a-token-of-the-ci", b"Bearer of-the-origin"
    assert kept() == kept(ours) == kept(basic("ci:a-token-of-the-ci")) == kept(others, ours) == []
    assert kept(others) == [others]
    (tmp_path / "tokens").write_text("ci of-the-origin\n")
    assert kept(others) == []


def test_passwords_wait_in_a_queue_with_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(access, "_is_password", lambda *_: goes_on.wait(60) and False)
    who = known(tmp_path, htpasswd=f"me:{PASSWORD}\n")

    async def ask(pair: str) -> Refusal | None:
        try:
            await who.name_of({"headers": [(b"authorization", basic(pair))]})
        except Refusal as refusal:
            return refusal
        return None

    async def all_of_them() -> list[Refusal | None]:
        waiting = [asyncio.ensure_future(ask(f"me:{number % 64}")) for number in range(80)]
        await asyncio.sleep(0)
        late = await ask("me:another")
        goes_on.set()
        return [late, *await asyncio.gather(*waiting)]

    late, *others = asyncio.run(all_of_them())
    assert late is not None
    assert (late.status, late.headers) == (503, {"retry-after": "1"})
    assert [each and each.status for each in others] == [401] * 80
    who.close()


def test_no_realm_of_an_upstream_that_a_client_named_is_inside(quirks: Quirks) -> None:
    quirks.script = lambda _: Reply(200, {}, b'{"token": "x"}')
    header = f'Bearer realm="{quirks.url}/token"'
    nobody: Credential | None = None
    for guarded in (False, True):
        home = "http://registry.example"
        tokens = Tokens(home, "http", lambda _: nobody, is_guarded=guarded)
        if guarded:
            with pytest.raises(SourceError, match="private"):
                tokens.renew("a", header)
    assert quirks.asked == []


def test_probes_are_for_hosts_that_the_operator_has_named(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    told = (Upstream("*", "http://{namespace}"), Upstream(None, "http://a.example"),
            Upstream("b.example", "http://b.example"))  # fmt: skip
    registry = Registry(Settings(told, folder), Store(folder))
    for number in range(9):
        assert registry._upstreams.get(f"r{number}.example") is not None
    for each in registry._upstreams:
        each.reach.failed(SourceError("x", 0, "away"), 0.0)
        monkeypatch.setattr(each, "probe", partial(asked.append, each.name))
    for _ in range(9):
        assert len(registry.problems()) == 2
    wait_until(lambda: len({*asked}) == 2)
    assert {*asked} == {"http://a.example", "http://b.example"}
    registry.close()


def test_a_page_of_an_origin_runs_nothing() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    def told(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
        start = {"type": "http.response.start", "status": 200, "headers": list(headers)}
        asyncio.run(_send_safely(send, start))
        return dict(sent.pop()["headers"])

    sandboxed = {b"content-security-policy": b"sandbox", b"x-content-type-options": b"nosniff"}
    for kind in (b"text/html; charset=utf-8", b"image/svg+xml", b"application/xhtml+xml", b""):
        assert told((b"Content-Type", kind)).items() >= sandboxed.items(), kind
    assert b"content-security-policy" not in told((b"content-type", b"application/json"))
