"""Upstreams that are asked with the credentials of each client (`credentials = "client"`)."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote

import pytest

from shmstream.errors import SourceError
from shmstream.registry.settings import BadSetting, Settings
from shmstream.registry.settings import Upstream as Told
from shmstream.registry.upstream import upstream as module
from shmstream.registry.upstream.credentials import Credential, CredentialsError, of_client
from shmstream.registry.upstream.repository import Repository
from shmstream.registry.upstream.upstream import Upstream
from shmstream.upstreams.notes import Notes
from tests.support import docker_registry as upstreams
from tests.support.images import Image, digest_of, image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.programs import program
from tests.support.quirks import Asked, Quirks, Reply, Script, plain, ranged
from tests.support.registries import has_image, skopeo
from tests.support.roles import content
from tests.support.root import GROUP, as_user, make_shared, needs_root
from tests.support.serving import Serve, Serving
from tests.support.token_server import TokenServer

MIB = 1 << 20
ALICE, BOB, WRONG = "alice:the secret of alice", "bob:the secret of bob", "alice:a guess"
SECRETS = [each.partition(":")[2] for each in (ALICE, BOB, WRONG)]
CHALLENGE = 'Basic realm="the upstream of this cache", charset="UTF-8"'


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def credential_of(pair: str) -> Credential:
    user, _, secret = pair.partition(":")
    return Credential(user, secret)


def table(url: str, namespace: str = "") -> str:
    named = f', namespace = "{namespace}"' if namespace else ""
    return f'{{url = "{url}", credentials = "client"{named}}}'


def status(serving: Serving, path: str, pair: str | None = None) -> int:
    headers = {} if pair is None else {"Authorization": basic(pair)}
    return serving.ask(path, **headers).status


def check_secrets(serving: Serving) -> None:
    """Stop it: no secret is in its log, in what operators saw, or in a file of the store."""
    hidden = [form.encode() for each in SECRETS for form in (each, quote(each))]
    hidden += [basic(each).partition(" ")[2].encode() for each in (ALICE, BOB, WRONG)]
    seen = [serving.ask(path).body for path in ("/", "/metrics", "/readyz")]
    told = serving.stop_and_read()
    assert '"path":"/v2/' in told
    seen.append(told.encode())
    for folder, _, names in os.walk(serving.store / "registry"):
        for name in names:
            seen += [name.encode(), (Path(folder) / name).read_bytes()]
    for each in seen:
        assert not any(secret in each for secret in hidden)


# What is read.


def test_what_a_client_tells() -> None:
    for told, pair in [
        ([], None), ([basic(":")], None), ([basic(ALICE)], tuple(ALICE.split(":"))),
        ([basic("a:b:c").replace("Basic", "bASIC")], ("a", "b:c")), ([basic("a:")], ("a", "")),
    ]:  # fmt: skip
        found = of_client(told)
        assert (None if found is None else (found.user, found.secret)) == pair
        assert "secret of" not in repr(found)
    for told in (["Bearer abc"], ["Basic !"], ["Basic"], [""], [basic("name")], [basic("a:b\n")],
                 [basic(ALICE), basic(ALICE)], ["Digest x"]):  # fmt: skip
        with pytest.raises(CredentialsError) as caught:
            of_client(told)
        assert "abc" not in str(caught.value)


def test_contradictions_are_told_with_all_other_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("""
        store = "/s"
        workers = 0
        [[upstream]]
        url = "https://a"
        credentials = "client"
        anonymous = true
        docker_config = "/config.json"
        allow = ["me"]
        prefix = "/A B/"
        [[upstream]]
        namespace = "*.example.com"
        url = "https://{namespace}"
        credentials = "client"
        [[upstream]]
        namespace = "b.io"
        url = "https://b"
        credentials = "s3cret"
    """)
    with pytest.raises(BadSetting) as caught:
        Settings.from_file(str(file))
    told = [(each.key, each.line) for each in caught.value.mistakes]
    assert told == [
        ("workers", 3), ("upstream 1, credentials", 6), ("upstream 1, credentials", 6),
        ("upstream 1, credentials", 6), ("upstream 1, anonymous", 7), ("upstream 1, prefix", 10),
        ("upstream 2, credentials", 14), ("upstream 3, credentials", 18),
    ]  # fmt: skip
    for each in ("and anonymous contradict", "and docker_config contradict", "is 'client', to pass",
                 "and allow contradict", "could get a client's password"):  # fmt: skip
        assert each in str(caught.value)
    one = Told(None, "https://a", credentials="client")
    assert one.as_table() == {"url": "https://a", "credentials": "client"}
    assert Settings.from_json(Settings((one,), "/s").to_json()).upstreams == (one,)


def test_the_secret_of_a_store(tmp_path: Path) -> None:
    """All processes have the same one; nobody else can read it; without it there is another."""
    notes, path = Notes(str(tmp_path), "reach"), tmp_path / "registry" / "secret"
    threads_found: list[bytes] = []
    threads = [threading.Thread(target=lambda: threads_found.append(notes.secret()))
               for _ in range(8)]  # fmt: skip
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert set(threads_found) == {path.read_bytes()}
    assert path.stat().st_mode & 0o777 == 0o600
    assert Notes(str(tmp_path), "grants").secret() == path.read_bytes()
    path.chmod(0o640)
    assert notes.secret() != path.read_bytes()
    assert sorted(each.name for each in path.parent.iterdir()) == ["grants", "reach", "secret"]


# Real ones.


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    """A file for docker-registry, with the passwords of both."""
    path = tmp_path / "htpasswd"
    path.touch()
    for pair in (ALICE, BOB):
        made = [program("htpasswd", "apache2-utils"), "-bB", "-C", "4", str(path)]
        subprocess.run([*made, *pair.split(":")], check=True, capture_output=True)
    return path


def test_real_clients_through_four_workers(
    run_docker_registry: upstreams.Run,
    token_server: TokenServer,
    serve: Serve,
    htpasswd: Path,
    tmp_path: Path,
) -> None:
    """Each gets what the upstream gives to it, and each blob comes once for all of them."""
    by_token = run_docker_registry(auth=token_server.auth)
    by_password = run_docker_registry(auth={"htpasswd": {"realm": "r", "path": str(htpasswd)}})
    everything = token_server.token({"team/a", "team/b"})
    what = by_token.push("team/a", "v1", image(71, [300_000, 1000]), everything)
    by_token.push("team/b", "v1", what, everything)
    other = by_password.push("team/c", "v1", image(72, [5000]), BOB)
    token_server.allow(*ALICE.split(":"), "team/a")
    token_server.allow(*BOB.split(":"), "team/b")
    serving = serve("--workers", "4", "--upstream", table(by_token.url, "token.io"),
                    "--upstream", table(by_password.url, "basic.io"), upstream="")  # fmt: skip
    host = f"{serving.host}:{serving.port}"
    for each in (by_token, by_password):
        each.reset()

    def copies(name: str, pair: str | None) -> bool:
        to = tmp_path / f"{name}-{pair}".replace("/", "-")
        given = ["--src-no-creds"] if pair is None else ["--src-creds", pair]
        client = skopeo(name, host, to, *given)
        client.communicate(timeout=PATIENCE)
        layers = what.layers if "token" in name else other.layers
        return client.returncode == 0 and has_image(to, layers)

    team_a, team_b, team_c = (
        "token.io/team/a:v1", "token.io/team/b:v1", "basic.io/team/c:v1"
    )  # fmt: skip
    assert copies(team_a, ALICE)
    assert copies(team_c, BOB)
    for name, pair in ((team_a, BOB), (team_c, WRONG), (team_a, None)):
        assert not copies(name, pair), (name, pair)
    paths = [f"/v2/token.io/team/a/{each}" for each in _parts(what)]
    for path in paths * 2:  # whichever worker it is
        found = [status(serving, path, each) for each in (ALICE, BOB, WRONG, None)]
        assert found == [200, 401, 401, 401], path
    for path in [f"/v2/basic.io/team/c/{each}" for each in _parts(other)]:
        found = [status(serving, path, each) for each in (BOB, ALICE, WRONG, None, ":")]
        assert found == [200, 200, 401, 401, 401], path
    assert copies(team_b, BOB)
    got = [each.path for each in by_token.requests("GET", "/blobs/") if each.status == 200]
    assert len(got) == len(set(got)) == 3, "a configuration, two layers: once for alice and bob"
    assert {each.authorization for each in token_server.asked} <= {
        None, basic(ALICE), basic(BOB), basic(WRONG),
    }  # fmt: skip
    check_secrets(serving)


def _parts(what: Image) -> list[str]:
    parts = [f"blobs/{digest_of(each)}" for each in what.blobs]
    return [*parts, f"manifests/{what.digest}", "manifests/v1"]


# An upstream that tells what it was asked.


class Guarded:
    """A registry with one blob, in every repository; only these pairs may have it."""

    def __init__(self, quirks: Quirks, data: bytes) -> None:
        self.good = {basic(ALICE), basic(BOB)}
        self.data = data
        self.digest = digest_of(data)
        self.path = f"/v2/a/b/blobs/{self.digest}"
        self.going_on = threading.Event()  # the first answer gives the half, and breaks off then
        self._is_first = True
        self._quirks = quirks

    def __call__(self, asked: Asked) -> Reply:
        if asked.authorization not in self.good:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'}, b"who are you?")
        if asked.path == "/v2/":
            return Reply(200, {}, b"{}")
        whole = Reply(200, {"Content-Type": "application/octet-stream"}, self.data)
        if asked.method == "GET" and self._is_first:
            self._is_first = False
            return Reply(pieces=self._half(whole.head()), closes=True)
        return ranged(asked, whole)

    def _half(self, head: bytes) -> Iterator[bytes]:
        yield head + self.data[: len(self.data) // 2]
        self.going_on.wait(PATIENCE)

    def asked_by(self, pair: str, method: str = "GET") -> int:
        return sum(each.authorization == basic(pair) for each in
                   self._quirks.requests("/blobs/", method))  # fmt: skip


@pytest.fixture
def guarded(quirks: Quirks) -> Iterator[Guarded]:
    quirks.script = made = Guarded(quirks, content(73, 4 * MIB))
    yield made
    made.going_on.set()


def opened(stack: ExitStack, serving: Serving, path: str, pair: str) -> HTTPResponse:
    connection, response = serving.open(path, Authorization=basic(pair))
    stack.callback(connection.close)
    assert response.status == 200
    return response


def test_a_leader_whose_credentials_are_revoked(
    quirks: Quirks, guarded: Guarded, serve: Serve
) -> None:
    """Followers with good credentials get the rest with their own, in whichever worker they are."""
    serving = serve("--workers", "2", "--upstream", table(quirks.url), upstream="")
    with ExitStack() as stack:
        alice = opened(stack, serving, guarded.path, ALICE)
        first = alice.read(MIB)
        bobs = [opened(stack, serving, guarded.path, BOB) for _ in range(3)]
        assert guarded.asked_by(BOB) == 0, "they follow"
        assert guarded.asked_by(BOB, "HEAD") > 0, "and were admitted by the upstream"
        assert status(serving, guarded.path, WRONG) == 401
        guarded.good.remove(basic(ALICE))
        guarded.going_on.set()
        for each in bobs:
            assert each.read() == guarded.data
        assert first + alice.read() == guarded.data, "it was admitted when it began"
    assert guarded.asked_by(BOB) > 0
    assert guarded.asked_by(WRONG) <= 2 * 2, "at most twice by each worker"
    check_secrets(serving)


def test_a_worker_is_killed(quirks: Quirks, guarded: Guarded, serve: Serve) -> None:
    """Another one goes on with the client, with what the client has told and nothing else."""
    serving = serve("--workers", "2", "--upstream", table(quirks.url), upstream="")
    with ExitStack() as stack:
        alice = opened(stack, serving, guarded.path, ALICE)
        first = alice.read(MIB)
        workers = serving.workers()
        for pid in workers:  # one of them has the client
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: set(serving.workers()) - set(workers) != set())
            guarded.going_on.set()
        assert first + alice.read() == guarded.data
    assert {each.authorization for each in quirks.requests("/blobs/")} <= {None, basic(ALICE)}
    assert status(serving, guarded.path, BOB) == 200
    assert status(serving, guarded.path) == 401


def test_wrong_passwords_and_logins(quirks: Quirks, guarded: Guarded, serve: Serve) -> None:
    """A wrong password in a loop costs the upstream next to nothing; and clients can log in."""
    guarded.going_on.set()
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    answer = serving.ask("/v2/")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, CHALLENGE)
    assert quirks.asked == []
    logins = [status(serving, "/v2/", pair) for pair in (ALICE, WRONG, ":")]
    assert logins == [200, 401, 200], "skopeo without credentials sends an empty name"
    for authorization in ("Bearer abcdefgh", "Basic !", ""):
        answer = serving.ask(guarded.path, Authorization=authorization)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, CHALLENGE)
    assert len(quirks.requests("/blobs/")) == 0
    refused = [serving.ask(guarded.path, Authorization=basic(WRONG)) for _ in range(50)]
    assert {each.status for each in refused} == {401}
    assert guarded.asked_by(WRONG) < 10
    assert b"other credentials than yours" in refused[0].body
    assert status(serving, guarded.path, ALICE) == 200
    assert status(serving, guarded.path, WRONG) == 401
    guarded.good.remove(basic(ALICE))
    assert status(serving, guarded.path, ALICE) == 200, "it was granted a moment ago"
    for each in (serving.store / "registry" / "grants").iterdir():
        os.utime(each, (time.time() - 301, time.time() - 301))
    assert status(serving, guarded.path, ALICE) == 401
    guarded.good.add(basic(WRONG))
    wait_until(lambda: status(serving, guarded.path, WRONG) == 200)
    check_secrets(serving)


def test_a_redirect_gets_no_credentials(
    quirks: Quirks, guarded: Guarded, serve: Serve, tmp_path: Path
) -> None:
    """Bytes come from another origin, as registries have it; it is told nothing of the client."""
    elsewhere = Quirks()
    try:
        whole = Reply(200, {"Content-Type": "application/octet-stream"}, guarded.data)
        elsewhere.script = lambda asked: ranged(asked, whole)
        inner = guarded

        def script(asked: Asked) -> Reply:
            reply = inner(asked)
            if "/blobs/" not in asked.path or reply.status == 401:
                return reply
            return Reply(307, {"Location": f"{elsewhere.url}/data?signed=1"})

        quirks.script = script
        serving = serve("--workers", "1", "--upstream", table(quirks.url), "--htpasswd",
                        str(_of_this_cache(tmp_path)), upstream="")  # fmt: skip
        assert status(serving, guarded.path, ALICE) == 200
        assert {each.authorization for each in elsewhere.asked} == {None}
        # The password of a client for this cache itself is for no upstream.
        assert status(serving, guarded.path, "carol:for this cache") == 401
        assert status(serving, "/v2/", "carol:for this cache") == 200
        assert basic("carol:for this cache") not in {each.authorization for each in quirks.asked}
    finally:
        elsewhere.close()


def _of_this_cache(folder: Path) -> Path:
    command = [program("htpasswd", "apache2-utils"), "-nbB", "-C", "4", "carol", "for this cache"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path = folder / "of-this-cache"
    path.write_text(re.sub(r"\s+\Z", "\n", made))
    return path


def test_skopeo_logs_in(quirks: Quirks, serve: Serve, tmp_path: Path, guarded: Guarded) -> None:
    """`skopeo login` is told whether the upstream knows the password."""
    guarded.going_on.set()
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    for pair, good in ((ALICE, True), (WRONG, False)):
        user, _, password = pair.partition(":")
        command = [program("skopeo", "skopeo"), "login", "--tls-verify=false", "--authfile",
                   str(tmp_path / "auth.json"), "-u", user, "--password-stdin",
                   f"{serving.host}:{serving.port}"]  # fmt: skip
        done = subprocess.run(command, input=password.encode(), capture_output=True, check=False)
        assert (done.returncode == 0) is good, done.stderr
    succeeds_with = [program("skopeo", "skopeo"), "logout", "--authfile",
                     str(tmp_path / "auth.json"), f"{serving.host}:{serving.port}"]  # fmt: skip
    subprocess.run(succeeds_with, check=True, capture_output=True)


# Clients without credentials, and limits.


def half_private(*images: Image, limited: bool = False) -> Script:
    """A registry with private repositories of Alice. If `limited`, strangers get 429 for others."""
    there = plain(*images)

    def script(asked: Asked) -> Reply:
        is_private = "/private/" in asked.path or (limited and asked.path == "/v2/")
        if is_private and asked.authorization != basic(ALICE):
            return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'})
        if limited and "/manifests/" in asked.path and asked.authorization is None:
            return Reply(429, {"Retry-After": "21600"}, b"limit of your address")
        return there(asked)

    return script


def check_asks_to_log_in(serving: Serving, path: str, *, wait: bool = False) -> None:
    answer = serving.ask(path)
    assert (answer.status, answer.headers.get("www-authenticate")) == (401, CHALLENGE)
    assert ("retry-after" in answer.headers) is wait
    assert not wait or 0 < int(answer.headers["retry-after"]) <= 21600


def test_too_many_requests_of_strangers(quirks: Quirks, serve: Serve) -> None:
    """Clients that send their credentials only if they are asked for them get what they may."""
    what = image(74, [100])
    quirks.script = half_private(what, limited=True)
    serving = serve("--workers", "2", "--upstream", table(quirks.url), upstream="")
    check_asks_to_log_in(serving, "/v2/private/x/manifests/v1")
    check_asks_to_log_in(serving, "/v2/public/x/manifests/v1", wait=True)
    quirks.asked.clear()
    for path in ("/v2/private/y/manifests/v1", "/v2/public/y/manifests/v1"):
        check_asks_to_log_in(serving, path, wait=True)
    assert quirks.asked == [], "it wants no requests"
    for path in ("/v2/private/x/manifests/v1", "/v2/public/x/manifests/v1"):
        assert status(serving, path, ALICE) == 200


def test_what_is_refused_is_not_counted(quirks: Quirks, serve: Serve) -> None:
    """Neither strangers nor wrong passwords use up a number of pulls, or leave files."""
    what, other = image(75, [100]), image(77, [100])
    quirks.script = half_private(what, other)
    limited = table(quirks.url).replace("}", ', max_pulls = "1/6h"}')
    serving = serve("--workers", "2", "--upstream", limited, upstream="")
    for number in range(4):
        check_asks_to_log_in(serving, f"/v2/private/x{number}/manifests/v1")
        assert status(serving, "/v2/private/x/manifests/v1", f"alice:{number}") == 401
    assert status(serving, f"/v2/public/x/manifests/{digest_of(b'x')}") == 404
    assert list((serving.store / "registry" / "rates").iterdir()) == []
    assert status(serving, "/v2/public/x/manifests/v1") == 200
    check_asks_to_log_in(serving, f"/v2/public/x/manifests/{digest_of(b'x')}", wait=True)
    assert status(serving, f"/v2/private/x/manifests/{other.digest}", ALICE) == 200
    assert status(serving, f"/v2/private/x/manifests/{digest_of(b'x')}", ALICE) == 429
    assert len(list((serving.store / "registry" / "rates").iterdir())) == 2


def test_a_registry_that_hides_from_strangers(quirks: Quirks, serve: Serve) -> None:
    """A 404 asks clients to log in, unless the registry has no challenge, or has given a token."""
    what = image(76, [100])
    there, greeting = plain(what), ['Basic realm="r"']

    def script(asked: Asked) -> Reply:
        if asked.authorization == basic(ALICE):
            return there(asked)
        if asked.path == "/v2/" and greeting[0]:
            return Reply(401, {"WWW-Authenticate": greeting[0]})
        if asked.path.startswith("/token"):
            return Reply(200, {"Content-Type": "application/json"}, b'{"token": "x"}')
        return Reply(404)

    quirks.script = script
    paths = [f"/v2/a/b/{each}" for each in _parts(what)]
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    for path in paths:
        check_asks_to_log_in(serving, path)
        assert status(serving, path, ALICE) == 200
        check_asks_to_log_in(serving, path)
    assert status(serving, "/v2/a/b/manifests/none", ALICE) == 404
    assert status(serving, "/v2/a/b/manifests/none", WRONG) == 404
    for greeting[0] in ("", f'Bearer realm="{quirks.url}/token",service="r"'):
        upstream = Upstream(quirks.url, client_key=b"key")
        with pytest.raises(SourceError) as caught:
            Repository(upstream, "a/b").resolve("v1", "*/*")
        assert caught.value.status == 404, greeting


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_what_may_be_hidden_keeps_nobody_from_what_is_public(quirks: Quirks, scheme: str) -> None:
    """A registry gives public images to strangers, and says 404 of others."""
    what = image(71, [1000])
    there = plain(what)
    greeting = f'{scheme} realm="{quirks.url}/token",service="r"'

    def script(asked: Asked) -> Reply:
        if asked.path == "/v2/":
            return Reply(401, {"WWW-Authenticate": greeting})
        return Reply(401) if asked.path.startswith("/token") else there(asked)

    quirks.script = script
    repository = Repository(Upstream(quirks.url, client_key=b"key"), "a/b")
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            repository.resolve("none", "*/*")
        assert caught.value.status == 401
        assert repository.resolve("v1", "*/*").digest == what.digest


def test_a_refusal_is_of_what_was_asked(quirks: Quirks) -> None:
    """A registry that lists tags for nobody does not keep its public images from clients."""
    what = image(72, [1000])
    there = plain(what)

    def script(asked: Asked) -> Reply:
        is_list = asked.path.endswith("/tags/list")
        return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'}) if is_list else there(asked)

    quirks.script = script
    upstream = Upstream(quirks.url, client_key=b"key")
    for own in (upstream, upstream.for_client(credential_of(ALICE))):
        repository = Repository(own, "a/b")
        for _ in range(3):
            with pytest.raises(SourceError) as caught:
                repository.tags({})
            assert caught.value.status == 401
        assert len(quirks.requests("/tags/list")) <= 2
        assert repository.resolve("v1", "*/*").digest == what.digest
        with repository.source("blobs", what.layers[0], lambda *_: None).open() as feed:
            assert b"".join(map(bytes, feed)) == what.blobs[1]
        quirks.asked.clear()


def test_the_memory_of_clients_is_bounded(quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are known, and refusals go when their time is over."""
    quirks.script = lambda _: Reply(401, {"WWW-Authenticate": 'Basic realm="r"'})
    monkeypatch.setattr(module, "_MOST_CLIENTS", 3)
    monkeypatch.setattr(module, "_MOST_REFUSED", 3)
    monkeypatch.setattr(module, "_REFUSED_FOR", 3600.0)
    upstream = Upstream(quirks.url, client_key=b"key")
    made = [upstream.for_client(credential_of(f"alice:{number}")) for number in range(5)]
    assert len(upstream._clients) == 3
    assert upstream.for_client(credential_of("alice:4")) is made[4]
    assert upstream.for_client(credential_of("alice:0")) is not made[0]

    def refuse(name: str) -> int:
        with pytest.raises(SourceError):
            Repository(made[4], name).resolve("v1", "*/*")
        return len(quirks.requests(f"/{name}/"))

    for number in range(5):
        assert refuse(f"a{number}") > 0
    assert len(made[4]._refused) == 3
    before = len(quirks.requests("/a4/"))
    assert refuse("a4") == before, "it was refused a moment ago"
    for refused in made[4]._refused:
        made[4]._refused[refused] = (time.monotonic(), made[4]._refused[refused][1])
    refuse("b")
    assert [name for name, _ in made[4]._refused] == ["b"]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_several_urls_of_which_one_asks_to_log_in(quirks: Quirks, order: tuple[str, str]) -> None:
    """A mirror that has nothing does not keep clients from the registry that wants to know them."""
    what = image(73, [1000])
    there = plain(what)

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/two"):
            return Reply(404)
        if asked.authorization != basic(ALICE):
            return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'})
        return there(replace(asked, path=asked.path.removeprefix("/one")))

    quirks.script = script
    first, second = (f"{quirks.url}/{each}" for each in order)
    other = Upstream(second, client_key=b"key", is_other=True)
    upstream = Upstream(first, client_key=b"key", others=(other,))
    for pair in (None, WRONG):
        credential = None if pair is None else credential_of(pair)
        repository = Repository(upstream.for_client(credential), "a/b")
        source = repository.source("blobs", what.layers[0], lambda *_: None)
        for ask in (partial(repository.resolve, "v1", "*/*"), source.open):
            with pytest.raises(SourceError) as caught:
                ask()
            assert caught.value.status == 401
    repository = Repository(upstream.for_client(credential_of(ALICE)), "a/b")
    assert repository.resolve("v1", "*/*").digest == what.digest


def test_a_token_service_that_forbids(quirks: Quirks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 403 holds as long as a 401: a wrong password in a loop reaches it once."""
    challenge = f'Bearer realm="{quirks.url}/token",service="r"'

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            return Reply(403, {}, b"forbidden")
        return Reply(401, {"WWW-Authenticate": challenge})

    quirks.script = script
    monkeypatch.setattr(module, "_REFUSED_FOR", 3600.0)
    upstream = Upstream(quirks.url, client_key=b"key")
    for client in (None, Credential("alice", "a guess")):
        repository = Repository(upstream.for_client(client), "a/b")
        quirks.asked.clear()
        for _ in range(3):
            with pytest.raises(SourceError) as caught:
                repository.resolve("v1", "*/*")
            assert (caught.value.status, caught.value.said) == (403, "forbidden")
        assert len(quirks.requests("/token")) == 1


def test_a_password_that_is_changed_during_a_hold(
    quirks: Quirks, guarded: Guarded, serve: Serve
) -> None:
    """Blobs are asked for all the same, so what was granted does not last until its end."""
    guarded.going_on.set()

    def script(asked: Asked) -> Reply:
        if "/manifests/" in asked.path:
            return Reply(429, {"Retry-After": "600"})
        return guarded(asked)

    quirks.script = script
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    assert status(serving, guarded.path, ALICE) == 200
    assert status(serving, "/v2/a/b/manifests/v1", ALICE) == 429
    for each in (serving.store / "registry" / "grants").iterdir():
        os.utime(each, (time.time() - 301, time.time() - 301))
    guarded.good.remove(basic(ALICE))
    assert status(serving, guarded.path, ALICE) == 401


def test_conditions_tell_strangers_nothing(quirks: Quirks, serve: Serve) -> None:
    """Whether a digest is here, a client learns only if its upstream says that it may have it."""
    known, other = image(78, [1000]), image(79, [1000])
    there = plain(known, other)

    def script(asked: Asked) -> Reply:
        if asked.authorization == basic(ALICE):
            return there(asked)
        return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'}, b"who are you?")

    quirks.script = script
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    for part in _parts(known):
        assert status(serving, f"/v2/a/b/{part}", ALICE) == 200

    def answers(
        what: Image, method: str, condition: str, pair: str | None
    ) -> list[tuple[int, bytes, list[str]]]:
        """For a layer and for the manifest, without what depends on the digest."""
        own = {} if pair is None else {"Authorization": basic(pair)}
        found = []
        for kind, digest in (("blobs", what.layers[0]), ("manifests", what.digest)):
            name, value = condition.format(digest).split("=")
            answer = serving.ask(f"/v2/a/b/{kind}/{digest}", method, **own, **{name: value})
            names = {*answer.headers} - {"content-length", "date", "x-request-id"}
            found.append((answer.status, answer.body.replace(digest.encode(), b""), sorted(names)))
        return found

    for method in ("HEAD", "GET"):
        for condition in ('If-None-Match="{}"', 'If-Match="another"'):
            for pair in (None, WRONG, BOB):
                if_here = answers(known, method, condition, pair)
                assert if_here == answers(other, method, condition, pair), (condition, pair)
                assert [each[0] for each in if_here] == [401, 401]
        for what in (other, known):
            for condition, expected in (('If-None-Match="{}"', 304), ('If-Match="another"', 412)):
                found = answers(what, method, condition, ALICE)
                assert [each[0] for each in found] == [expected] * 2


# What others see of it.


def test_only_what_was_given_is_noted_as_an_image(quirks: Quirks, serve: Serve) -> None:
    """Clients that are refused leave no notes, whatever they ask for, and wherever it is by then.

    One thread of the only worker writes the notes, in order.
    """
    what = image(74, [1000])
    there = plain(what)

    def script(asked: Asked) -> Reply:
        if asked.authorization in (basic(ALICE), basic(BOB)):
            return there(asked)
        return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'}, b"who are you?")

    quirks.script = script
    serving = serve("--workers", "1", "--upstream", table(quirks.url), upstream="")
    notes = Notes(str(serving.store), "images")

    def noted() -> set[tuple[str, str]]:
        told = [json.loads(each.text) for each in notes.all()]
        return {(each["name"].rpartition("/")[2], each["reference"]) for each in told}

    strangers: list[dict[str, str]] = [{}, {"Authorization": basic(WRONG)}]

    def refused(name: str) -> None:
        for reference in ("v1", what.digest, digest_of(b"of nothing")):
            for method in ("HEAD", "GET"):
                path = f"/v2/team/{name}/manifests/{reference}"
                for headers in strangers:
                    assert serving.ask(path, method, **headers).status == 401

    refused("before")
    alice = {"Authorization": basic(ALICE)}
    assert serving.ask("/v2/team/one/manifests/v1", "HEAD", **alice).status == 200
    wait_until(lambda: noted() == {("one", "v1")})
    assert serving.ask(f"/v2/team/one/manifests/{what.digest}", **alice).status == 200
    refused("after")
    bob = {"Authorization": basic(BOB)}
    assert serving.ask("/v2/team/two/manifests/v1", "HEAD", **bob).status == 200
    wait_until(lambda: ("two", "v1") in noted())
    assert noted() == {("one", "v1"), ("one", what.digest), ("two", "v1")}


def test_strangers_who_can_reach_it_are_told_of(
    quirks: Quirks, serve: Serve, tmp_path: Path
) -> None:
    """It gives nobody what this cache may pull; but everybody may look at its status page."""
    tokens = tmp_path / "tokens"
    tokens.write_text("ci " + "1f0e" * 8 + "\n")
    for options, is_told in (
        ([], False), (["--listen", "0.0.0.0:0"], True),
        (["--listen", "0.0.0.0:0", "--tokens", str(tokens)], False),
    ):  # fmt: skip
        serving = serve("--workers", "1", "--upstream", table(quirks.url), *options, upstream="")
        told = "every host of its networks may pull what upstreams with the credentials of clients"
        assert (told in serving.log) is is_told
        assert "may pull without a password" not in serving.log
        serving.close()


USES_THE_SECRET = """
import logging
from shmstream.upstreams.notes import Notes
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
one, two = (Notes(sys.argv[1], "reach").secret() for _ in range(2))
print(one == two)
"""


@needs_root
def test_a_secret_that_another_user_has_made(for_all: Path) -> None:
    """Each worker has its own key then, and the log says what that means."""
    store = for_all / "store"
    make_shared(store)
    assert as_user(1001, GROUP, str(store), USES_THE_SECRET) == "True"
    told = as_user(1002, GROUP, str(store), USES_THE_SECRET)
    assert told.count("WARNING cannot use ") == 2
    assert "Each worker has a key of its own: max_pulls" in told
    assert told.endswith("False")


def test_the_limit_of_one_client_is_no_problem_of_the_upstream(
    quirks: Quirks, serve: Serve
) -> None:
    there = plain(image(77, [1000]))

    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="r"'}, b"who are you?")
        if asked.authorization == basic(ALICE):
            return Reply(429, {"Retry-After": "600"}, b"slow down")
        return there(asked)

    quirks.script = script
    serving = serve("--workers", "1", "--upstream", table(quirks.url, "own.io"), upstream="")
    path = "/v2/own.io/team/app/manifests/v1"
    assert status(serving, path, ALICE) == 429
    assert serving.metric("shmstream_upstream_up", upstream="own.io") == 1
    assert json.loads(serving.ask("/readyz").body)["upstreams"] == []
    assert status(serving, path, BOB) == 200
