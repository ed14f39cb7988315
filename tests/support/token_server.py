"""A token server for docker-registry: it signs tokens that allow pulling and pushing.

    tokens.allow("me", "secret", "team/a")    who may pull what; None, None without credentials
    tokens.auth                               the configuration of a docker-registry that trusts it
    tokens.asked                              what was asked for, with which Authorization or form

A thread of the test's own; keys and signatures are openssl's.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


@dataclass(frozen=True)
class Asked:
    """A request for a token."""

    method: str
    fields: dict[str, str]
    authorization: str | None


class TokenServer:
    """Gives signed tokens to users with the right password, and answers 401 to others."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "token-key.pem"
        self._certificate = folder / "token-certificate.pem"
        command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=tokens"
        files = ["-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        body = self._certificate.read_text().split("-----")[2]
        self._chain = ["".join(body.split())]
        self.asked: list[Asked] = []
        self._allowed: dict[tuple[str, str] | None, set[str]] = {}
        handler = type("Handler", (_Handler,), {"server_of_tokens": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/token?account=x"

    @property
    def auth(self) -> dict[str, Any]:
        """For docker-registry."""
        facts = {"realm": self.url, "service": "the registry", "issuer": "tests"}
        return {"token": {**facts, "rootcertbundle": str(self._certificate)}}

    def allow(self, user: str | None, password: str | None, *repositories: str) -> None:
        """Let a user pull from, and push to, these repositories and no others."""
        known = None if user is None or password is None else (user, password)
        self._allowed[known] = set(repositories)

    def token(self, repositories: set[str], life: int = 300) -> str:
        """A token for these repositories."""
        now = int(time.time())
        access = [
            {"type": "repository", "name": name, "actions": ["pull", "push"]}
            for name in sorted(repositories)
        ]
        claims = {
            "iss": "tests", "sub": "x", "aud": "the registry", "jti": str(len(self.asked)),
            "iat": now, "nbf": now - 5, "exp": now + life, "access": access,
        }  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = f"{_encoded(header)}.{_encoded(claims)}"
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            check=True,
            capture_output=True,
        )
        return f"{signed}.{_base64(done.stdout)}"

    def answer(self, asked: Asked) -> tuple[int, dict[str, object]]:
        self.asked.append(asked)
        who: tuple[str, str] | None = None
        if asked.authorization is not None:
            pair = base64.b64decode(asked.authorization.removeprefix("Basic ")).decode()
            user, _, password = pair.partition(":")
            who = user, password
        elif asked.method == "POST":
            who = "<token>", asked.fields["refresh_token"]
        if who not in self._allowed:
            return 401, {"details": "incorrect username or password"}
        kind, name, actions = asked.fields["scope"].split(":")
        assert (kind, actions) == ("repository", "pull")
        granted = {name} & self._allowed[who]
        return 200, {"token": self.token(granted), "expires_in": 300}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of_tokens: TokenServer

    def do_GET(self) -> None:
        self._answer("GET", urlsplit(self.path).query)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self._answer("POST", self.rfile.read(length).decode())

    def _answer(self, method: str, fields: str) -> None:
        plain = {name: values[0] for name, values in parse_qs(fields).items()}
        asked = Asked(method, plain, self.headers.get("Authorization"))
        status, facts = self.server_of_tokens.answer(asked)
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _encoded(facts: dict[str, Any]) -> str:
    return _base64(json.dumps(facts).encode())


@pytest.fixture
def token_server(tmp_path: Path, direct: None) -> Iterator[TokenServer]:  # noqa: ARG001
    server = TokenServer(tmp_path)
    yield server
    server.close()
