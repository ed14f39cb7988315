"""`shmstream serve` with mirrors, in front of a scripted origin (`quirks`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from shmstream import Store
from tests.support.interpreters import wait_until
from tests.support.quirks import Asked, Quirks, Reply, ranged
from tests.support.serving import Serving

Run: TypeAlias = Callable[..., "Mirrored"]


class Mirrored:
    """A running `shmstream serve` with mirrors; `ask` is of `Serving`."""

    def __init__(self, folder: Path, *mirrors: dict[str, object], **settings: object) -> None:
        """`settings` by their names in a TOML file."""
        folder.mkdir(exist_ok=True)
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        for each in mirrors:
            lines.append("[[mirror]]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in each.items()]
        (folder / "serve.toml").write_text("\n".join(lines))
        self.serving = Serving(folder, "--config", str(folder / "serve.toml"), upstream="")
        self.ask = self.serving.ask
        self.url = f"http://{self.serving.host}:{self.serving.port}"
        self.store = Store(self.serving.store)

    def close(self) -> None:
        wait_until(lambda: not self.store.flights())
        self.serving.close()
        assert "Traceback" not in self.serving.log, self.serving.log
        assert self.store.check() == []
        self.store.gc()


def tagged(body: bytes, etag: str, **headers: str) -> Callable[[Asked], Reply]:
    """A file with an ETag: answers conditions, and ranges with If-Range."""
    told = {"ETag": etag, **{name.replace("_", "-"): value for name, value in headers.items()}}

    def script(asked: Asked) -> Reply:
        if asked.headers.get("if-none-match") == etag:
            return Reply(304, told)
        if asked.headers.get("if-range", etag) != etag:
            return Reply(200, told, body)
        return ranged(asked, Reply(200, told, body))

    return script


@pytest.fixture(scope="session")
def mirrored_process(
    quirks_process: Quirks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mirrored]:
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("http", "https", "all", "no"):
            patch.setenv(f"{scheme}_proxy", "")
        url = quirks_process.url
        mirrored = Mirrored(
            tmp_path_factory.mktemp("mirrored"),
            {"path": "/files", "kind": "http", "url": url, "immutable": ["/for-ever/*", "*.whl"]},
            {"path": "/believed", "kind": "http", "url": f"{url}/below", "ttl": "1h"},
            {"path": "/hf", "kind": "huggingface", "url": url},
            {"path": "/pypi", "kind": "pypi", "url": url},
            {"path": "/pypi-now", "kind": "pypi", "url": f"{url}/simple", "ttl": 0},
        )
    yield mirrored
    unknown = mirrored.serving.metric("shmstream_upstream_bytes_total", upstream="")
    assert unknown == 0, "all bytes are of one of the mirrors"
    mirrored.close()


@pytest.fixture
def mirrored(mirrored_process: Mirrored, quirks: Quirks) -> Iterator[Mirrored]:  # noqa: ARG001
    """Mirrors of `quirks`. One process serves all tests, so each test uses paths of its own."""
    yield mirrored_process
    wait_until(lambda: not mirrored_process.store.flights())
