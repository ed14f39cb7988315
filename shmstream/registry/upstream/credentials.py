"""The credentials for an upstream: of this cache, or of a client (`of_client`).

Those of this cache are looked up at every use.

The first of these that has credentials for the upstream counts:

    SHMSTREAM_AUTH                   user:password, for the upstream without a namespace
    SHMSTREAM_AUTH_DOCKER_IO         the same, for the upstream of the namespace docker.io
    a Docker config.json             `credHelpers` and `credsStore` (the programs
                                     docker-credential-*), then `auths`
    DOCKER_AUTH_CONFIG               the text of such a file, as GitLab sets it

In a file, a key is a registry, or a registry and the beginning of a repository's name: of several
keys that are right, the longest one counts. An entry without credentials hides no other one.

No error, log line or `repr` contains credentials.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from shmstream.sources.base import has_control_characters

_HUB = frozenset(
    ("docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
)
_HUB_ADDRESS = "https://index.docker.io/v1/"  # its name in Docker's configuration
_CONFIG_VARIABLE = "DOCKER_AUTH_CONFIG"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_TIME = 30.0  # s
_TOKEN_USER = "<token>"  # the user name that helpers return with an identity token
_NOT_FOUND = "credentials not found"


class CredentialsError(Exception):
    """Credentials cannot be read. The message contains none."""


class Means(StrEnum):
    """What a secret can be used for."""

    PASSWORD = "password"
    """For basic authentication, and to get tokens."""
    IDENTITY = "identity token"
    """Only to get tokens."""
    TOKEN = "token"
    """As a bearer token itself."""


@dataclass(frozen=True)
class Credential:
    """A user and a secret. Its `repr` shows neither."""

    user: str = field(repr=False)
    secret: str = field(repr=False)
    means: Means = Means.PASSWORD
    password: str = field(default="", repr=False, compare=False)  # beside an identity token


def of_client(headers: Sequence[str]) -> Credential | None:
    """What a client has told in `headers`, its headers `Authorization`; None if it has told none.

    skopeo and podman, when they are asked and have none, send an empty name and password: that is
    none, too. A bearer token is for this cache, and never one of the upstream.

    Raises:
        CredentialsError: it is no name and password.
    """
    if not headers:
        return None
    scheme, _, rest = headers[0].partition(" ")
    pair = pair_of(rest) if scheme.lower() == "basic" else None
    if len(headers) > 1 or pair is None or has_control_characters("".join(pair)):
        raise CredentialsError("a client's header is no Basic authorization")
    return Credential(*pair) if any(pair) else None


def pair_of(text: str) -> tuple[str, str] | None:
    """The name and the password of a basic authorization; None if `text` is none."""
    try:
        plain = base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    name, colon, password = plain.partition(":")
    return (name, password) if colon else None


def is_hub(host: str) -> bool:
    """Whether `host` is one of the names of Docker Hub."""
    return host.removesuffix(":443") in _HUB


def check(
    namespaces: Iterable[str | None], config: str | None, environment: Mapping[str, str]
) -> None:
    """Check that all credentials can be read, without running any helper.

    Raises:
        CredentialsError: something cannot be read.
    """
    for namespace in namespaces:
        _in_environment(namespace, environment)
    for _ in _configurations(config, environment):
        pass


def find(
    host: str,
    namespace: str | None,
    config: str | None,
    environment: Mapping[str, str],
    repository: str = "",
) -> Credential | None:
    """The credential for a `repository` of the registry at `host`; None if there is none.

    `host` includes its port, unless that is the usual one. `repository` is the registry's own name.

    Blocks for the disk, and while a helper runs.

    Raises:
        CredentialsError: a file cannot be read or understood, or a helper fails.
    """
    if (found := _in_environment(namespace, environment)) is not None:
        return found
    for where, facts in _configurations(config, environment):
        if (found := _in_config(facts, where, host, repository, environment)) is not None:
            return found
    return None


def _configurations(
    config: str | None, environment: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if config is not None:
        yield config, _read(config)
    if text := environment.get(_CONFIG_VARIABLE):
        yield _CONFIG_VARIABLE, _parsed(text, _CONFIG_VARIABLE)


def rights(namespace: str | None, environment: Mapping[str, str]) -> str:
    """Namespaces of one registry have the same text if they have the same credentials there.

    It does not tell the credentials.
    """
    pair = environment.get(variable_of(namespace))
    return hashlib.sha256(pair.encode(errors="surrogateescape")).hexdigest() if pair else ""


def rights_of(credential: Credential, key: bytes) -> str:
    """A text that only the same credential has, and that tells nothing of it without the `key`."""
    pair = json.dumps([credential.user, credential.secret])
    return hmac.digest(key, pair.encode(), "sha256").hex()


def variable_of(namespace: str | None) -> str:
    """The environment variable with user and password for a namespace."""
    of = "" if namespace is None else "_" + re.sub(r"[^A-Z0-9]", "_", namespace.upper())
    return f"SHMSTREAM_AUTH{of}"


def _in_environment(namespace: str | None, environment: Mapping[str, str]) -> Credential | None:
    variable = variable_of(namespace)
    pair = environment.get(variable)
    if not pair:
        return None
    user, colon, password = pair.partition(":")
    if not colon:
        raise CredentialsError(f"{variable} is not user:password")
    if not user and not password:
        return None
    return _credential(user, password, Means.PASSWORD, variable)


def _read(config: str) -> dict[str, Any]:
    try:
        text = Path(config).read_text(encoding="utf-8")
    except OSError as error:
        raise CredentialsError(f"cannot read {config}: {error.strerror}") from None
    except ValueError:
        raise CredentialsError(f"cannot read {config}: it is no UTF-8") from None
    return _parsed(text, config)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # their messages would show the text
        found = None
    if not isinstance(found, dict):
        raise CredentialsError(f"{where} is not the JSON of a Docker configuration")
    return found


def _in_config(
    config: dict[str, Any],
    where: str,
    host: str,
    repository: str,
    environment: Mapping[str, str],
) -> Credential | None:
    for each, helper in _best_first(config.get("credHelpers"), host, repository):
        if (found := _ask_helper(helper, each, environment)) is not None:
            return found
    failure: CredentialsError | None = None
    if store := config.get("credsStore"):
        address = _HUB_ADDRESS if is_hub(host) else host
        try:
            if (found := _ask_helper(store, address, environment)) is not None:
                return found
        except CredentialsError as error:  # such as of a file that was copied from a desktop
            failure = error
    for _, entry in _best_first(config.get("auths"), host, repository):
        if isinstance(entry, dict):
            found = _entry(entry, f"{where}, auths of {host}")
            if found is not None:
                return found
    if failure is not None:
        raise failure
    return None


def _best_first(table: object, host: str, repository: str) -> list[tuple[str, Any]]:
    """The entries for a repository: first those whose key names most of its path."""
    if not isinstance(table, dict):
        return []
    found = [(_parts(each, host, repository), each == host, each) for each in table]
    good = sorted((each for each in found if each[0] is not None), key=_order, reverse=True)
    return [(each, table[each]) for _, _, each in good]


def _order(found: tuple[int | None, bool, str]) -> tuple[int, bool]:
    return found[0] or 0, found[1]


def _parts(address: str, host: str, repository: str) -> int | None:
    """How many parts of the repository's name `address` names; None if it is of something else.

    Such as https://index.docker.io/v1/, as Docker writes it, or host:5000/team/app.
    """
    written = address.partition("://")[2] or address
    server, _, path = written.partition("/")
    server = server.lower().removesuffix(":443")
    if server != host.removesuffix(":443") and not (is_hub(server) and is_hub(host)):
        return None
    path = path.strip("/")
    if path in ("", "v1", "v2"):
        return 0
    parts = path.split("/")
    return len(parts) if repository.split("/")[: len(parts)] == parts else None


def _entry(entry: dict[str, Any], where: str) -> Credential | None:
    user, password, token = (
        value if isinstance(value := entry.get(name), str) else ""
        for name in ("username", "password", "registrytoken")
    )
    if auth := entry.get("auth"):
        try:
            user, _, password = _decoded(auth).partition(":")
        except (binascii.Error, ValueError, TypeError, AttributeError):
            raise CredentialsError(f"{where}: `auth` is not base64 of user:password") from None
        password = password.rstrip("\0")  # as Docker does
    identity = entry.get("identitytoken")
    if isinstance(identity, str) and identity:
        return _credential(user, identity, Means.IDENTITY, where, password)
    if token:
        return _credential(user, token, Means.TOKEN, where)
    return _credential(user, password, Means.PASSWORD, where) if user or password else None


def _decoded(text: str) -> str:
    """The text in base64, which some tools wrap into lines, and others write without its end."""
    plain = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()


def _credential(user: str, secret: str, means: Means, where: str, password: str = "") -> Credential:
    if has_control_characters(user + secret + password):
        raise CredentialsError(f"{where}: credentials have no line breaks")
    return Credential(user, secret, means, password)


def _ask_helper(helper: Any, address: str, environment: Mapping[str, str]) -> Credential | None:
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise CredentialsError(f"no program has the name docker-credential-{helper!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=address,
            capture_output=True,
            text=True,
            timeout=_HELPER_TIME,
            env=dict(environment),
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        kind = type(error).__name__  # its text might contain the output
        raise CredentialsError(f"{program} does not run: {kind}") from None
    if done.returncode:
        if _NOT_FOUND in done.stdout:
            return None
        raise CredentialsError(f"{program} failed for {address} with exit code {done.returncode}")
    answer = _parsed(done.stdout, f"what {program} says")
    user, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise CredentialsError(f"{program} gives no Username or no Secret")
    if not user and not secret:
        return None
    means = Means.IDENTITY if user == _TOKEN_USER else Means.PASSWORD
    return _credential(user, secret, means, program)
