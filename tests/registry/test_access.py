"""Who may pull: passwords, tokens, certificates, and from which upstreams."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shmstream.registry.api.access import Access, check_allowed, tokens_of, users_of
from shmstream.registry.api.errors import Refusal
from shmstream.registry.settings import BadSetting, Settings, Upstream
from tests.support.docker_registry import program
from tests.support.images import image
from tests.support.quirks import Quirks, plain
from tests.support.serving import Serve, Serving

IMAGE = image(51, [3000])
ME = "me:correct horse"
TOKEN = "a-token-of-the-ci"
MANIFEST = "/v2/a/b/manifests/v1"


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.fixture(scope="module")
def htpasswd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the program htpasswd has made; `you` has another password."""
    path = tmp_path_factory.mktemp("access") / "htpasswd"
    path.touch()
    for pair in (ME, "you:" + "long" * 30):
        command = [
            program("htpasswd", "apache2-utils"),
            "-bB",
            "-C",
            "4",
            str(path),
            *pair.split(":"),
        ]
        subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# of machines\n\nci {TOKEN}\n")
    return path


def access(**files: Path) -> Access:
    given: dict[str, Any] = {key: str(path) for key, path in files.items()}
    settings = Settings((Upstream(None, "http://a"),), "/s", **given)
    found = Access.of(settings)
    assert found is not None
    return found


def told(who: Access, *headers: str) -> str | None:
    """The name of a client with these headers; "refused" if they are not right."""
    scope = {"headers": [(b"authorization", each.encode("latin-1")) for each in headers]}

    async def ask() -> str | None:
        return await who.name_of(scope)

    try:
        return asyncio.run(ask())
    except Refusal as refusal:
        asks = refusal.headers["www-authenticate"].startswith("Basic realm=")
        return "refused" if refusal.status == 401 and asks else "wrongly refused"


CLIENTS = [
    ([], None),
    ([basic(ME)], "me"),
    ([basic(ME).replace("Basic", "basic")], "me"),
    ([basic("you:" + "long" * 30)], "you"),
    ([f"Bearer {TOKEN}"], "ci"),
    ([basic(f"ci:{TOKEN}")], "ci"),
    ([basic(f"me:{TOKEN}")], "refused"),
    ([basic("me:wrong")], "refused"),
    ([basic("nobody:correct horse")], "refused"),
    ([basic("me")], "refused"),
    ([basic("me:")], "refused"),
    ([basic("me:a\0b")], "refused"),
    (["Basic !!"], "refused"),
    (["Bearer wrong-token"], "refused"),
    (["Bearer"], "refused"),
    (["Digest x"], "refused"),
    ([""], "refused"),
    ([basic(ME), basic(ME)], "refused"),
    (["Bearer " + "x" * 10_000], "refused"),
]


def test_who_clients_are(htpasswd: Path, tokens: Path) -> None:
    who = access(htpasswd=htpasswd, tokens=tokens)
    for headers, name in CLIENTS * 2:  # also when it is remembered
        assert told(who, *headers) == name, headers
    assert Access.of(Settings((Upstream(None, "http://a"),), "/s")) is None


def test_files_that_change(htpasswd: Path, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A password that was right counts no longer; a file that is wrong changes nothing."""
    copy = tokens.with_name("htpasswd")
    copy.write_bytes(htpasswd.read_bytes())
    who = access(htpasswd=copy, tokens=tokens)
    assert told(who, basic(ME)) == "me"
    copy.write_text("me:plain text, and longer\n")
    assert told(who, basic(ME)) == "me"
    assert "line 1 has no hash of bcrypt" in caplog.text
    assert "plain text" not in caplog.text
    tokens.write_text("")
    assert told(who, f"Bearer {TOKEN}") == "refused"
    copy.write_text("")
    assert told(who, basic(ME)) == "refused"


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for text, why in (("me", "line 1 is not NAME:HASH"), ("#\nme:{SHA}x", "line 2 has no hash")):
        with pytest.raises(ValueError, match=why):
            users_of(text)
    for text in ("token", "a b c", "a short"):
        with pytest.raises(ValueError, match="line 1 is not NAME TOKEN"):
            tokens_of(text)
    for key in ("htpasswd", "tokens"):
        with pytest.raises(BadSetting, match=f"{key}: .*No such file"):
            access(**{key: tmp_path / "missing"})
    with pytest.raises(BadSetting, match="upstream 1, allow: goes with htpasswd or tokens"):
        Settings((Upstream(None, "http://a", allow=("me",)),), "/s")


def test_what_a_name_may() -> None:
    for name, allowed, status in [
        (None, None, 401), (None, ("me",), 401), (None, ("*",), 0), ("me", None, 0),
        ("me", ("me",), 0), ("you", ("me",), 403), ("you", (), 403),
    ]:  # fmt: skip
        try:
            check_allowed(name, allowed)
        except Refusal as refusal:
            found = refusal.status
        else:
            found = 0
        assert found == status, (name, allowed)


# A real one.


@pytest.fixture
def guarded(serve: Serve, quirks: Quirks, htpasswd: Path, tokens: Path) -> Serving:
    quirks.script = plain(IMAGE)
    options = ["--htpasswd", str(htpasswd), "--tokens", str(tokens), "--workers", "1"]
    for namespace, allow in (("", '["me"]'), ("open.io", '["*"]'), ("all.io", "")):
        table = f'{{url = "{quirks.url}"'
        table += f', namespace = "{namespace}"' if namespace else ""
        table += f", allow = {allow}}}" if allow else "}"
        options += ["--upstream", table]
    return serve(*options, upstream="")


def test_clients_of_a_registry(guarded: Serving) -> None:
    def status(path: str, authorization: str = "") -> int:
        headers = {"Authorization": authorization} if authorization else {}
        return guarded.ask(path, **headers).status

    answer = guarded.ask("/v2/")
    assert (answer.status, answer.headers["www-authenticate"]) == (
        401, 'Basic realm="shmstream", charset="UTF-8"',
    )  # fmt: skip
    assert b"UNAUTHORIZED" in answer.body
    assert status("/v2/", basic(ME)) == 200
    assert [status(MANIFEST, each) for each in ("", basic(ME), f"Bearer {TOKEN}")] == [
        401,
        200,
        403,
    ]
    assert [status(f"{MANIFEST}?ns=open.io", each) for each in ("", basic(ME))] == [200, 200]
    assert status(f"{MANIFEST}?ns=open.io", basic("me:wrong")) == 401
    assert [status(f"{MANIFEST}?ns=all.io", each) for each in ("", f"Bearer {TOKEN}")] == [401, 200]
    assert [status(each) for each in ("/", "/events", "/healthz", "/metrics")] == [
        401,
        401,
        200,
        200,
    ]
    assert status("/", basic(ME)) == 200
    skopeo = [program("skopeo", "skopeo"), "inspect", "--raw", "--tls-verify=false"]
    reference = f"docker://{guarded.host}:{guarded.port}/all.io/a/b:v1"
    for credentials, code in ((["--creds", ME], 0), (["--no-creds"], 1)):
        done = subprocess.run([*skopeo, *credentials, reference], capture_output=True, check=False)
        assert bool(done.returncode) == bool(code), done.stderr
    guarded.accesses(lambda lines: {"me", "ci"} <= {each.get("user") for each in lines})
    assert "correct horse" not in guarded.stop_and_read()


# Certificates.


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)


def test_a_client_with_a_certificate(
    serve: Serve, quirks: Quirks, tls_certificate: Path, tmp_path: Path
) -> None:
    quirks.script = plain(IMAGE)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=ci", "-keyout", "key.pem", "-out", "cert.pem",
            folder=tmp_path)  # fmt: skip
    serving = serve("--certfile", str(tls_certificate), "--client-ca", str(tmp_path / "cert.pem"),
                    "--workers", "1", upstream=quirks.url)  # fmt: skip
    context = ssl.create_default_context(cafile=str(tls_certificate))
    serving.tls = context
    with pytest.raises(OSError):
        serving.ask("/v2/")
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert serving.ask(MANIFEST).status == 200


def test_strangers_are_told_of(serve: Serve, tokens: Path) -> None:
    """Whoever listens for other hosts, and asks nobody for a name, reads what that means."""
    everybody = "every host of its networks may pull without a password"
    for options, is_told in (
        ([], False), (["--listen", "0.0.0.0:0"], True), (["--listen", ":0"], True),
        (["--listen", "0.0.0.0:0", "--tokens", str(tokens)], False),
    ):  # fmt: skip
        serving = serve("--workers", "1", *options)
        assert (everybody in serving.log) is is_told
        serving.close()
