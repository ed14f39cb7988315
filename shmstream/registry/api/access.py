"""`Access`: which clients may pull, and from which upstreams.

It asks for the names and passwords of this cache. An upstream may be asked with the credentials of
clients instead (`told_for_upstream`): what is not of this cache goes there, and nothing else does.

    htpasswd    users and their passwords, hashed by bcrypt (`htpasswd -B`): basic authentication
    tokens      bearer tokens with their names, one a line; also as a password of that name
    allow       of an upstream: the names that may pull from it; "*": every client, also without a
                name; without `allow`, every client with a valid name

Without both files no client is asked for a name. TLS asks for certificates of clients: a client
without a certificate does not get as far as here.

To check a password takes long, on purpose. So it is done in threads of its own, a few at a time,
and a pair that was right is remembered: as a hash with a key that only this process has. The files
are read again when they change; one that is not valid then is logged, and the former one counts.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from shmstream.asgi.messages import Scope
from shmstream.registry.api.errors import Code, Refusal, log_in
from shmstream.registry.settings import BadSetting, BadSettings, Settings
from shmstream.registry.upstream.credentials import (
    Credential,
    CredentialsError,
    of_client,
    pair_of,
)
from shmstream.upstreams.singleflight import Together

T = TypeVar("T")

EVERYBODY = "*"
"""In `allow`: also clients without credentials."""
REALM = {"www-authenticate": 'Basic realm="shmstream", charset="UTF-8"'}
"""The header of an answer that asks for credentials."""

_BCRYPT = re.compile(r"\$2[aby]?\$\d\d\$[./A-Za-z0-9]{53}")
_NAME = re.compile(r"[^\s:,]{1,255}")
_TOKEN = re.compile(r"[\x21-\x7e]{8,4096}")
_LARGEST = 8 << 20  # bytes of a file
_REMEMBERED = 4096  # pairs that were right
_LONGEST = 8192  # characters of the header
_THREADS = 2  # that check passwords: others are left for what clients wait for
_MOST_PENDING = 64  # passwords that wait to be checked
_MOST_OTHERS = 4096  # headers that are known not to be for this cache
_NO_PASSWORD = "$2b$10$nRzilKyTq7YlI5XXlAZte.xQddTONbdiIth107UPD.1nIF7tNb/ge"  # nobody has it

_log = logging.getLogger("shmstream")


def users_of(text: str) -> dict[str, str]:
    """By name, the hash in a file of htpasswd.

    Raises:
        ValueError: a line is none; the text has its number, and nothing of a secret.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, hashed = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not _NAME.fullmatch(name):
            raise ValueError(f"line {number} is not NAME:HASH")
        if not _BCRYPT.fullmatch(hashed):
            raise ValueError(f"line {number} has no hash of bcrypt: use `htpasswd -B`")
        found[name] = hashed
    return found


def tokens_of(text: str) -> dict[bytes, str]:
    """By the SHA-256 of a token, the name that it stands for.

    Raises:
        ValueError: a line is none; the text has its number, and nothing of a secret.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or line.startswith("#"):
            continue
        if len(parts) != 2 or not _NAME.fullmatch(parts[0]) or not _TOKEN.fullmatch(parts[1]):
            raise ValueError(
                f"line {number} is not NAME TOKEN, with a token of 8 characters or more"
            )
        found[_sha256(parts[1])] = parts[0]
    return found


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass
class _File(Generic[T]):
    """What a file says, as long as it is valid."""

    path: str
    understand: Callable[[str], T]
    content: T
    seen: tuple[int, ...] = ()

    def look(self) -> bool:
        """Read the file if it has changed; whether it has.

        Raises:
            OSError, ValueError: it cannot be read or understood; what it said before counts.
        """
        facts = os.stat(self.path)
        seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_dev)
        if seen == self.seen:
            return False
        self.seen = seen
        if facts.st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        self.content = self.understand(Path(self.path).read_text(encoding="utf-8"))
        return True


@dataclass
class Access:
    """Who may pull. For one event loop."""

    users: _File[dict[str, str]] | None = None
    tokens: _File[dict[bytes, str]] | None = None
    _right: dict[bytes, str] = field(default_factory=dict)
    _others: dict[bytes, None] = field(default_factory=dict)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _checker: Together = field(default_factory=lambda: Together("shmstream-password", _THREADS))

    @classmethod
    def of(cls, settings: Settings) -> Access | None:
        """None if clients are not asked who they are. Reads the files.

        Raises:
            BadSetting: a file cannot be read, or is not valid.
            ImportError: `pip install 'shmstream[serve]'`.
        """
        if settings.htpasswd is None and settings.tokens is None:
            return None
        made = cls()
        if settings.htpasswd is not None:
            import bcrypt  # noqa: F401  so that what lacks is told at the start

            made.users = _File(settings.htpasswd, users_of, {})
        if settings.tokens is not None:
            made.tokens = _File(settings.tokens, tokens_of, {})
        found = []
        for key, file in (("htpasswd", made.users), ("tokens", made.tokens)):
            try:
                if file is not None:
                    file.look()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                found.append(BadSetting(key, f"{file and file.path} cannot be used: {reason}"))
        if found:
            raise BadSettings(found)
        return made

    async def name_of(self, scope: Scope) -> str | None:
        """The name of the client; None if it has told none.

        Raises:
            Refusal: what it has told is not right; or it cannot be checked just now.
        """
        lines = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if not lines:
            return None
        told = lines[0].decode("latin-1")
        if len(lines) > 1 or len(told) > _LONGEST:
            raise who_are_you()
        self._look()
        scheme, _, rest = told.partition(" ")
        name = None
        if scheme.lower() == "bearer":
            name = self._of_token(rest.strip())
        elif scheme.lower() == "basic" and (pair := pair_of(rest)) is not None:
            if not any(pair):  # so skopeo and podman tell that they have none
                return None
            name = await self._of_pair(*pair)
        if name is None:
            raise who_are_you()
        return name

    async def keep_ours(self, scope: Scope) -> None:
        """Take the header `Authorization` out of a request if it is for this cache.

        So no server that is mirrored gets a password of this cache.

        Raises:
            Refusal: it cannot be checked just now.
        """
        lines = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if not lines:
            return
        self._look()
        told = hmac.digest(self._key, b"\0".join(lines), "sha256")
        if told in self._others:
            return
        for line in lines:
            try:
                name = await self.name_of({"headers": [(b"authorization", line)]})
            except Refusal as refusal:
                if refusal.status != 401:
                    raise
                continue
            scope["shmstream.user"] = name
            scope["headers"] = [
                each for each in scope["headers"] if each[0].lower() != b"authorization"
            ]
            return
        while len(self._others) >= _MOST_OTHERS:
            del self._others[next(iter(self._others))]
        self._others[told] = None

    def _look(self) -> None:
        for file in (self.users, self.tokens):
            try:
                if file is not None and file.look():
                    self._right.clear()
                    self._others.clear()
            except (OSError, ValueError) as error:
                if not isinstance(error, FileNotFoundError):
                    _log.error("%s: %s: what it said before counts", file and file.path, error)

    def _of_token(self, token: str) -> str | None:
        return None if self.tokens is None else self.tokens.content.get(_sha256(token))

    async def _of_pair(self, name: str, password: str) -> str | None:
        if self._of_token(password) == name:
            return name
        if self.users is None:
            return None
        pair = hmac.digest(self._key, f"{name}\0{password}".encode(), "sha256")
        if (known := self._right.get(pair)) is not None:
            return known
        hashed = self.users.content.get(name)
        key = (pair, hashed)
        if self._checker.pending >= _MOST_PENDING and not self._checker.is_asked(key):
            message, soon = "too many passwords are being checked", {"retry-after": "1"}
            raise Refusal(503, Code.UNAVAILABLE, message, headers=soon)
        # A name that there is not takes as long: else clients could find out which names there are.
        is_right = await self._checker.ask(
            key, lambda: _is_password(password, hashed or _NO_PASSWORD)
        )
        if not is_right or hashed is None or self.users.content.get(name) != hashed:
            return None
        while len(self._right) >= _REMEMBERED:
            del self._right[next(iter(self._right))]
        self._right[pair] = name
        return name

    def close(self) -> None:
        """Cancel all waiting. Idempotent."""
        self._checker.close()


def check_allowed(name: str | None, allowed: tuple[str, ...] | None) -> None:
    """Check that a client of that name may pull from an upstream with that `allow`.

    Raises:
        Refusal: it may not.
    """
    if allowed is not None and EVERYBODY in allowed:
        return
    if name is None:
        raise who_are_you()
    if allowed is not None and name not in allowed:
        raise Refusal(403, Code.DENIED, "this cache does not give that to you")


def who_are_you() -> Refusal:
    """The answer to a client that has to tell a name and a password, or other ones."""
    message = "this cache wants to know who you are"
    return Refusal(401, Code.UNAUTHORIZED, message, headers=REALM)


def told_for_upstream(scope: Scope) -> Credential | None:
    """What a client has told for an upstream that wants clients' own credentials; None: nothing.

    Raises:
        Refusal: it is no name and password.
    """
    lines = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if any(len(each) > _LONGEST for each in lines):
        raise log_in()
    try:
        return of_client([each.decode("latin-1") for each in lines])
    except CredentialsError as error:
        raise log_in() from error


def _is_password(password: str, hashed: str) -> bool:
    import bcrypt

    try:
        # htpasswd and all others look at the first 72 bytes.
        return bcrypt.checkpw(password.encode()[:72], hashed.encode())
    except ValueError:
        return False
