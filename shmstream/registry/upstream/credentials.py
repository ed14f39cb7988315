"""The credentials of this cache for an upstream. They are looked up at every use.

The first of these that has credentials for the upstream counts:

    SHMSTREAM_AUTH                   user:password, for the upstream without a namespace
    SHMSTREAM_AUTH_DOCKER_IO         the same, for the upstream of the namespace docker.io
    a Docker config.json             `credHelpers` and `credsStore` (the programs
                                     docker-credential-*), then `auths`
    DOCKER_AUTH_CONFIG               the text of such a file, as GitLab sets it

No error, log line or `repr` contains credentials.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from shmstream.sources.http_client import has_control_characters

_HUB = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
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


def is_hub(host: str) -> bool:
    """Whether `host` is one of the names of Docker Hub."""
    return host in _HUB


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
    host: str, namespace: str | None, config: str | None, environment: Mapping[str, str]
) -> Credential | None:
    """The credential for the registry at `host`, which includes its port; None if there is none.

    Blocks for the disk, and while a helper runs.

    Raises:
        CredentialsError: a file cannot be read or understood, or a helper fails.
    """
    if (found := _in_environment(namespace, environment)) is not None:
        return found
    for where, facts in _configurations(config, environment):
        if (found := _in_config(facts, where, host, environment)) is not None:
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
    """Namespaces of one registry have the same text if they have the same credentials there."""
    variable = _variable(namespace)
    return variable if environment.get(variable) else ""


def _variable(namespace: str | None) -> str:
    of = "" if namespace is None else "_" + re.sub(r"[^A-Z0-9]", "_", namespace.upper())
    return f"SHMSTREAM_AUTH{of}"


def _in_environment(namespace: str | None, environment: Mapping[str, str]) -> Credential | None:
    variable = _variable(namespace)
    pair = environment.get(variable)
    if not pair:
        return None
    user, colon, password = pair.partition(":")
    if not colon:
        raise CredentialsError(f"{variable} is not user:password")
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
    config: dict[str, Any], where: str, host: str, environment: Mapping[str, str]
) -> Credential | None:
    helpers = config.get("credHelpers")
    for each, helper in (helpers if isinstance(helpers, dict) else {}).items():
        if _is_same(each, host):
            return _ask_helper(helper, each, environment)
    if store := config.get("credsStore"):
        address = _HUB_ADDRESS if is_hub(host) else host
        if (found := _ask_helper(store, address, environment)) is not None:
            return found
    auths = config.get("auths")
    for each, entry in (auths if isinstance(auths, dict) else {}).items():
        if _is_same(each, host) and isinstance(entry, dict):
            return _entry(entry, f"{where}, auths of {host}")
    return None


def _is_same(address: str, host: str) -> bool:
    """Whether `address`, such as https://index.docker.io/v1/ in Docker's file, is `host`."""
    written = address.partition("://")[2] or address
    written = written.partition("/")[0].lower()
    return written == host or (is_hub(written) and is_hub(host))


def _entry(entry: dict[str, Any], where: str) -> Credential | None:
    user, password, token = (
        value if isinstance(value := entry.get(name), str) else ""
        for name in ("username", "password", "registrytoken")
    )
    if auth := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError, TypeError):
            raise CredentialsError(f"{where}: `auth` is not base64 of user:password") from None
        password = password.rstrip("\0")  # as Docker does
    identity = entry.get("identitytoken")
    if isinstance(identity, str) and identity:
        return _credential(user, identity, Means.IDENTITY, where)
    if token:
        return _credential(user, token, Means.TOKEN, where)
    return _credential(user, password, Means.PASSWORD, where) if user or password else None


def _credential(user: str, secret: str, means: Means, where: str) -> Credential:
    if has_control_characters(user + secret):
        raise CredentialsError(f"{where}: credentials have no line breaks")
    return Credential(user, secret, means)


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
    means = Means.IDENTITY if user == _TOKEN_USER else Means.PASSWORD
    return _credential(user, secret, means, program)
