"""Health, events and the status page, as a running server answers them."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.upstreams.notes import Notes
from tests.support.crowds import BLOB, KEY, MIB, SIZE, clients_of, finish
from tests.support.images import image
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.quirks import Asked, Quirks, Reply, plain
from tests.support.serving import Serve, Serving

TOKEN = "1f0e" * 8


def test_readiness(serve: Serve) -> None:
    serving = serve("--workers", "1", "--no-access-log")
    ready = serving.ask("/readyz")
    assert (ready.status, json.loads(ready.body)["ready"]) == (200, True)
    shutil.move(serving.store, serving.folder / "elsewhere")
    unready = serving.ask("/readyz")
    assert unready.status == 503
    assert json.loads(unready.body)["problems"] == [f"the store is gone: {serving.store}"]
    assert serving.ask("/healthz").status == 200
    serving.store.touch()
    for path in ("/metrics", "/readyz"):
        assert (serving.ask(path).status, path) == (503, path)
    assert "Traceback" not in serving.log
    serving.store.unlink()
    shutil.move(serving.folder / "elsewhere", serving.store)
    assert serving.ask("/readyz").status == serving.ask("/metrics").status == 200
    assert serving.ask("/readyz", "POST").status == 405
    assert serving.ask("/nothing").status == 404


def test_problems_of_the_upstream_are_told(serve: Serve, origin: Origin, upstream: str) -> None:
    serving = serve("--workers", "1", upstream=upstream)
    assert json.loads(serving.ask("/readyz").body)["upstreams"] == []
    origin.refuse()
    assert serving.ask("/v2/team/app/manifests/v1").status >= 500
    ready = serving.ask("/readyz")
    assert ready.status == 200, "what is here can be served"
    [problem] = json.loads(ready.body)["upstreams"]
    assert re.fullmatch(rf"{upstream}: .*refused.*, for \d+ s", problem)
    events = Events(serving)
    [seen] = events.next()["problems"]
    assert seen.rpartition(",")[0] == problem.rpartition(",")[0]
    events.close()
    origin.accept()
    assert serving.ask("/v2/team/app/manifests/v1").status == 404
    assert json.loads(serving.ask("/readyz").body)["upstreams"] == [], "it answers"


def problems_of(serving: Serving) -> list[str]:
    """What `/readyz` tells of upstreams."""
    told: list[str] = json.loads(serving.ask("/readyz").body)["upstreams"]
    return told


def test_problems_end_when_the_upstream_is_well(
    serve: Serve, origin: Origin, upstream: str
) -> None:
    """For all workers, and also if no client asks."""
    other = f"named.test={upstream}"
    serving = serve("--workers", "2", "--upstream", other, upstream=upstream)
    origin.refuse()
    assert serving.ask("/v2/named.test/team/app/manifests/v1").status == 502
    for _ in range(10):  # whichever worker is asked
        [problem] = problems_of(serving)
        assert problem.startswith(f"named.test, {upstream}: ")
    origin.accept()
    wait_until(lambda: not problems_of(serving))
    asked = {each.path for each in origin.requests()}
    assert "/v2/team/app/manifests/v1" in asked, "what failed is asked for again"
    origin.serve("/v2/team/app/tags/list", status=503)
    assert serving.ask("/v2/team/app/tags/list").status == 502
    [problem] = problems_of(serving)
    assert "503" in problem
    origin.serve("/v2/team/app/tags/list", text='{"tags": []}')
    assert serving.ask("/v2/team/app/tags/list").status == 200
    assert problems_of(serving) == []


class Guarded:
    """A registry that wants tokens. `failing` is what its token service answers; None: a token."""

    def __init__(self, url: str) -> None:
        self.failing: Reply | None = None
        self._url = url
        self._there = plain(image(73, [4000]))

    def __call__(self, asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            return self.failing or Reply(200, {}, b'{"token": "t"}')
        if asked.authorization is None:
            told = f'Bearer realm="{self._url}/token",service="s"'
            return Reply(401, {"WWW-Authenticate": told})
        return self._there(asked)


FAILURES = {
    "503": Reply(503),
    "500": Reply(500, {}, b"out of order"),
    "a page": Reply(200, {"Content-Type": "text/html"}, b"<html>maintenance</html>"),
    "a reset": Reply(resets=True),
    "404": Reply(404),
    "429": Reply(429, {"Retry-After": "2"}),
}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        *((name, "manifests/v1") for name in FAILURES),
        ("503", "tags/list"),
        ("503", f"blobs/{image(73, [4000]).layers[0]}"),
    ],
)
def test_a_failed_token_service_is_told_until_it_is_well(
    serve: Serve, quirks: Quirks, name: str, asked: str
) -> None:
    """No client asks meanwhile. The registry itself answers all the time."""
    quirks.script = guarded = Guarded(quirks.url)
    guarded.failing = FAILURES[name]
    serving = serve("--workers", "2", upstream=f"own.io={quirks.url}")
    assert serving.ask(f"/v2/own.io/a/b/{asked}").status in (429, 502)
    before = len(quirks.requests("/token"))

    def is_asked_again() -> bool:
        [problem] = problems_of(serving)
        assert re.fullmatch(r"own\.io, http://.*: .*, for \d+ s", problem)
        return len(quirks.requests("/token")) >= before + 2

    wait_until(is_asked_again)
    guarded.failing = None
    wait_until(lambda: not problems_of(serving))
    assert serving.metric("shmstream_upstream_up", upstream="own.io") == 1


def test_problems_end_if_only_prometheus_looks(serve: Serve, quirks: Quirks) -> None:
    serving = serve("--workers", "1", upstream=f"own.io={quirks.url}")
    for status in (503, 429):
        failure = Reply(status, {"Retry-After": "1"})
        quirks.script = partial(lambda failure, _: failure, failure)
        serving.ask("/v2/own.io/a/b/tags/list")
        assert serving.metric("shmstream_upstream_up", upstream="own.io") == 0
        quirks.script = plain(image(73, [4000]))
        wait_until(lambda: serving.metric("shmstream_upstream_up", upstream="own.io") == 1)


@pytest.mark.parametrize("has_heads", [True, False])
def test_a_5xx_for_one_repository_is_told_until_it_ends(
    serve: Serve, quirks: Quirks, has_heads: bool
) -> None:
    """Whatever the upstream answers elsewhere, and if it answers no HEAD at all."""
    there = plain(image(73, [4000]))
    states = {"bad": True}

    def script(asked: Asked) -> Reply:
        is_broken = states["bad"] or (asked.method == "HEAD" and not has_heads)
        return Reply(500) if "/a/bad/" in asked.path and is_broken else there(asked)

    quirks.script = script
    serving = serve("--workers", "1", upstream=f"own.io={quirks.url}")
    assert serving.ask("/v2/own.io/a/bad/manifests/v1").status == 502

    def is_asked_again() -> bool:
        [problem] = problems_of(serving)
        assert "500" in problem
        return len(quirks.requests("/v2/", "GET")) > 3

    wait_until(is_asked_again)
    states["bad"] = False
    wait_until(lambda: not problems_of(serving))


def test_hosts_that_clients_name_are_no_problem_of_operators(serve: Serve) -> None:
    """A name that nobody has is asked for: that must not look like an upstream that is away."""
    serving = serve("--workers", "1", upstream="*=https://{namespace}")
    assert serving.ask("/v2/a/b/manifests/v1?ns=none-such.invalid").status >= 400
    assert problems_of(serving) == []
    assert "shmstream_upstream_up{" not in serving.ask("/metrics").body.decode()


# Events.


class Events:
    """Server-sent events of a connection."""

    def __init__(self, serving: Serving, **headers: str) -> None:
        self.connection, self.response = serving.open("/events", **headers)
        assert self.response.status == 200
        self.worker = None

    def next(self) -> dict[str, Any]:
        """The next snapshot."""
        while not (line := self.response.readline()).startswith(b"data: "):
            assert line, "the events have ended"
        snapshot: dict[str, Any] = json.loads(line[6:])
        return snapshot

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_events(serve: Serve, origin: Origin, upstream: str) -> None:
    origin.change(BLOB, rate=MIB // 2, stall_after=MIB)
    serving = serve(upstream=upstream)
    events = Events(serving)
    assert events.response.getheader("content-type") == "text/event-stream"
    before = events.next()
    assert (before["flights"], before["recent"]) == ([], [])
    assert before["upstreams"] == [{"namespace": None, "url": upstream}]
    clients = clients_of(set(serving.workers()), serving, Store(serving.store))
    seen = [events.next()]
    while [each["published"] for each in seen[-1]["flights"]] != [MIB]:
        seen.append(events.next())
    origin.release()
    while seen[-1]["flights"]:
        seen.append(events.next())
    events.close()
    assert finish(clients) == len(clients)
    flying = [snapshot["flights"][0] for snapshot in seen if snapshot["flights"]]
    published = [each["published"] for each in flying]
    assert published == sorted(published)
    assert {each["key"] for each in flying} == {KEY}
    sizes = {each["size"] for each in flying if each["published"]}  # the upstream has told it then
    assert sizes == {SIZE}
    assert all(each["leader"] in serving.workers() for each in flying[1:-1])
    assert any(MIB / 8 < (each["rate"] or 0) < MIB for each in flying)
    assert all(one["time"] < two["time"] for one, two in pairwise(seen))


def test_strangers_see_no_names_of_what_only_some_clients_may_pull(
    serve: Serve, quirks: Quirks, tmp_path: Path
) -> None:
    """A name is hidden when it is told, not when it is noted; and digests are not."""
    secret, public = image(75, [1000]), image(76, [1000])
    quirks.script = plain(secret, public)
    of_clients = f'{{url = "{quirks.url}", namespace = "own.io", credentials = "client"}}'
    options = ["--workers", "1", "--upstream", of_clients, "--upstream", f"all.io={quirks.url}"]
    serving = serve(*options, upstream="")
    assert serving.ask(f"/v2/own.io/secret/app/manifests/{secret.digest}").status == 200
    assert serving.ask(f"/v2/all.io/public/app/manifests/{public.digest}").status == 200
    here = {secret.digest, public.digest}
    assert names_of(here, serving) == {
        secret.digest: None, public.digest: "all.io/public/app, a manifest",
    }  # fmt: skip
    names = Notes(str(serving.store), "names")
    wait_until(lambda: len(list(names.all())) == 2)
    serving.close()
    (tokens := tmp_path / "tokens").write_text(f"ci {TOKEN}\n")
    serving = serve(*options, "--tokens", str(tokens), upstream="")
    assert serving.ask("/events").status == 401
    assert names_of(here, serving, Authorization=f"Bearer {TOKEN}") == {
        secret.digest: "own.io/secret/app, a manifest",
        public.digest: "all.io/public/app, a manifest",
    }


def names_of(digests: set[str], serving: Serving, **headers: str) -> dict[str, str | None]:
    """The names of recent blobs, as soon as all of these are there."""
    events = Events(serving, **headers)
    seen: dict[str, str | None] = {}
    while not digests <= seen.keys():
        seen = {each["key"]: each["name"] for each in events.next()["recent"]}
    events.close()
    return {each: seen[each] for each in digests}


def test_viewers_share_a_snapshot_and_are_bounded(serve: Serve) -> None:
    serving = serve("--workers", "1")
    viewers = [Events(serving) for _ in range(64)]
    assert serving.ask("/events").status == 503
    seen: list[set[float]] = [set() for _ in viewers]
    while not set.intersection(*seen):  # until all viewers have got the same snapshot
        for viewer, times in zip(viewers, seen, strict=True):
            times.add(viewer.next()["time"])
            assert len(times) < 50
    for viewer in viewers:
        viewer.close()
    wait_until(lambda: serving.ask("/events", "HEAD").status == 200)


def test_the_page_lets_nothing_else_in(serve: Serve) -> None:
    serving = serve("--workers", "1")
    page = serving.ask("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    text = page.body.decode()
    assert "innerHTML" not in text
    outside = set(re.findall(r"https?://[\w./]+", text))
    assert outside == {"http://www.w3.org/2000/svg"}, "a name, not a place"
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", text)
