"""`Settings`: all settings of the registry, checked once, the same for all workers.

    command line   cli/serve       options; they override the file
    a file         from_file       TOML; sizes and durations as text: "100GiB", "90s"
    environment    to_environment  JSON, from the parent process to its workers

Settings hold no secrets: a URL with a password is refused. Credentials for upstreams are in a
Docker `config.json`; the settings hold its path.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from shmstream import units
from shmstream.cluster import Cluster
from shmstream.mirror.settings import Mirror
from shmstream.sources.base import check_connections

SETTINGS_VARIABLE = "SHMSTREAM_SETTINGS"
"""The environment variable that holds the settings of the workers, as JSON."""
CONFIG_VARIABLE = "SHMSTREAM_CONFIG"
"""The environment variable that holds the path of a TOML file, for other servers than ours."""

_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::\d{1,5})?", re.IGNORECASE)
_PREFIX = re.compile(r"[a-z0-9._-]+(?:/[a-z0-9._-]+)*")
_FURTHER = re.compile(r",\s*(?=https?://)")  # between the URLs of `--upstream`
_NAMED = "{namespace}"
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]\s]*)):(?P<port>\d{1,5})")


class BadSetting(ValueError):
    """A setting is not valid. `key` is its name in a file, `where` the path of the file, if any."""

    def __init__(self, key: str, reason: str, where: str | None = None) -> None:
        super().__init__(key, reason, where)
        self.key = key
        self.reason = reason
        self.where = where

    def __str__(self) -> str:
        file = f"{self.where}: " if self.where else ""
        return file + (f"{self.key}: {self.reason}" if self.key else self.reason)


@dataclass(frozen=True)
class Address:
    """A URL of an upstream, and what stands before the names of repositories there."""

    url: str
    prefix: str = ""


@dataclass(frozen=True)
class Upstream:
    """A registry that images come from.

    Attributes:
        namespace: the value that containerd sends as `?ns=`, such as "docker.io"; None for the
            upstream of requests without one; "*.example.com" or "*" for many.
        url: `https://registry-1.docker.io`. What follows `/v2/` in it is a prefix of names. In that
            of a pattern, `{namespace}` is the namespace that a client asks for.
        more: other URLs with the same images, which are asked in turn if the first one fails.
        prefix: what stands before the names of repositories there: "dockerhub-proxy".
        cafile: path of a file in PEM with authorities to trust beside those of the system.
        certfile: path of a file in PEM with a certificate to show.
        keyfile: path of its key, unless `certfile` contains the key.
        insecure: whether no certificate of it is checked.
        anonymous: whether it never gets credentials.
        docker_config, first_byte, silence, question: as in `Settings`, for it alone.
        connect: seconds to wait for a connection; None: 5 for a question, 10 for a download.
        max_downloads: downloads from one URL of it at one time, of one worker; None for no limit.
        connections: how many connections one blob may come over; None: as `Settings` says.
    """

    namespace: str | None
    url: str
    more: tuple[str, ...] = ()
    prefix: str = ""
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    insecure: bool = False
    anonymous: bool = False
    docker_config: str | None = None
    first_byte: float | None = None
    silence: float | None = None
    question: float | None = None
    connect: float | None = None
    max_downloads: int | None = None
    connections: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `URL` or `NAMESPACE=URL`; several URLs have commas between them.

        Raises:
            BadSetting: the text is neither.
        """
        before, equals, after = text.partition("=")
        namespace = before.strip() if equals and "://" not in before else None
        url, *more = _FURTHER.split((text if namespace is None else after).strip())
        return cls(namespace, url, tuple(more))

    def __post_init__(self) -> None:
        """Raises `BadSetting`."""
        if self.namespace is not None:
            name = self.namespace.removeprefix("*.") if self.is_pattern else self.namespace
            if name != "*" and not _NAMESPACE.fullmatch(name):
                what = "no name of a registry, such as docker.io"
                raise BadSetting("namespace", f"{self.namespace[:200]!r} is {what}")
            object.__setattr__(self, "namespace", self.namespace.lower())
        object.__setattr__(self, "url", _checked_url(self.url, is_pattern=self.is_pattern))
        more = tuple(_checked_url(each, is_pattern=self.is_pattern) for each in self.more)
        object.__setattr__(self, "more", more)
        prefix = self.prefix.strip("/")
        if prefix and not _PREFIX.fullmatch(prefix):
            reason = f"{self.prefix[:200]!r} is no beginning of a repository's name"
            raise BadSetting("prefix", reason)
        object.__setattr__(self, "prefix", prefix)
        if self.keyfile is not None and self.certfile is None:
            raise BadSetting("keyfile", "goes with certfile")
        if self.anonymous and self.docker_config is not None:
            raise BadSetting("anonymous", "and docker_config contradict each other")
        _check_connections(self.connections)
        _check_limits(self, _LEAST_OF_UPSTREAM)

    @property
    def is_pattern(self) -> bool:
        """Whether it is for many namespaces."""
        return self.namespace == "*" or (self.namespace or "").startswith("*.")

    @property
    def is_open(self) -> bool:
        """Whether clients may have any host asked."""
        return self.namespace == "*" and any(_NAMED in each for each in (self.url, *self.more))

    def fits(self, namespace: str) -> bool:
        """Whether a pattern is for this namespace."""
        ending = (self.namespace or "").removeprefix("*")
        return namespace.partition(":")[0].endswith(ending) or namespace.endswith(ending)

    def addresses(self, namespace: str | None = None) -> list[Address]:
        """Its URLs, the first one first, for a namespace that fits."""
        found = []
        for each in (self.url, *self.more):
            url, mark, behind = each.replace(_NAMED, namespace or "").partition("/v2/")
            own = behind.strip("/") if mark else ""
            found.append(Address(url.removesuffix("/v2"), own or self.prefix))
        return found

    def __str__(self) -> str:
        urls = " or ".join((self.url, *self.more))
        return urls if self.namespace is None else f"{self.namespace} from {urls}"


def _check_connections(connections: int | None) -> None:
    try:
        check_connections(connections)
    except ValueError as error:
        raise BadSetting("connections", str(error).removeprefix("connections ")) from None


def _checked_url(url: str, *, is_pattern: bool = False) -> str:
    plain = url.replace(_NAMED, "namespace.example") if is_pattern else url
    try:
        parts = urlsplit(plain)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    else:
        if "@" in parts.netloc:  # no message may repeat it
            reason = "a user and password do not belong here: put them into docker_config"
            raise BadSetting("url", reason)
    prefix = plain.partition("/v2/")[2].strip("/")
    is_plain = url.isascii() and not re.search(r"[\s{}]", plain)
    if not good or parts.query or parts.fragment or not is_plain:
        raise BadSetting("url", f"{url[:200]!r} is no URL of a registry, such as https://host:5000")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise BadSetting("url", f"in {url[:200]!r} no beginning of a name follows /v2/")
    return url.rstrip("/")


@dataclass(frozen=True)
class ClusterSettings:
    """The cluster of nodes that the store belongs to; see `shmstream.Cluster`, and docs/cluster.md.

    Attributes:
        url: of Redis or Valkey, without a password.
        advertise: `HOST:PORT` at which other nodes reach this one.
        secret_file: path of a file with the secret of the cluster.
        listen: `HOST:PORT` to listen on for other nodes, if that is not `advertise`.
        password_file: path of a file with the password for Redis.
        fan, max_peers, lease, certfile, keyfile, cafile: as for `shmstream.Cluster`.
    """

    url: str
    advertise: str
    secret_file: str
    listen: str | None = None
    password_file: str | None = None
    fan: int = 2
    max_peers: int = 16
    lease: float = 3.0
    certfile: str | None = None
    keyfile: str | None = None
    cafile: str | None = None

    def make(self) -> Cluster:
        """The cluster. Reads the files.

        Raises:
            BadSetting: a setting is not valid, or a file cannot be read.
        """
        given = asdict(self)
        given["secret"] = _line_of("secret_file", given.pop("secret_file"))
        if (file := given.pop("password_file")) is not None:
            given["password"] = _line_of("password_file", file)
        if "@" in self.url and ":" in self.url.partition("://")[2].rpartition("@")[0]:
            raise BadSetting("cluster, url", "a password does not belong here: see password_file")
        try:
            cluster = Cluster(**given)
            cluster.contexts()
        except ValueError as error:
            raise BadSetting("cluster", str(error)) from error
        except OSError as error:  # ssl.SSLError is one
            reason = f"there is no certificate and key, or no authority: {error}"
            raise BadSetting("cluster", reason) from error
        return cluster


def _line_of(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"cluster, {key}", f"{path} cannot be read: {error}") from error


def _workers() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """The settings of the registry. Sizes in bytes, times in seconds.

    Attributes:
        upstreams: no two with the same namespace. There is at least one, or a mirror.
        store: the folder of the store.
        max_bytes: limit of all complete blobs together; None for no limit.
        max_flights: downloads at one time, of all workers together; None for no limit.
        max_pass_through: clients of one worker at one time that are served straight from the
            upstream, because there is no room to keep the blob.
        connections: how many connections one blob may come over from an upstream that does not say
            it itself.
        min_rate: bytes a second that an upstream must give of a blob, or it counts as stalled.
        first_byte: how long an upstream may take to begin its answer.
        silence: how long it may give no byte in the middle of a blob.
        question: how long all of a question to it may take, such as the meaning of a tag.
        outage: how long it may be away in the middle of a blob that clients read.
        tag_ttl: how long the meaning of a tag is believed before the upstream is asked again.
        prefetch: how many layers are fetched at once when their manifest is asked for; 0 for none.
        docker_config: path of a Docker `config.json` with the credentials of upstreams.
        workers: number of worker processes.
        listen: `HOST:PORT`, `[IPv6]:PORT`; port 0 for any free one.
        certfile: path of a certificate in PEM, to serve TLS.
        keyfile: path of its key in PEM, unless `certfile` contains the key.
        max_connections: limit for one worker; beyond it requests are answered with 503.
        grace: how long a stopping worker lets its clients finish.
        keep: whether clients of a worker that ends are given to other workers.
        stuck_after: a worker without any progress for so long is killed; 0: never.
        access_log: whether to write an access log, to standard output.
        x_accel_redirect: a prefix of URLs that nginx, in front, maps to the store's folder; then
            nginx sends complete blobs. None: we send them.
        shared_group: as for `Store`: the users of the folder's group share its blobs. The registry
            itself is of one user.
        cluster: other nodes, which have the same blobs; None for none.
        mirrors: of other things than images; no two with the same path.

    Raises:
        BadSetting: a setting is not valid.
    """

    upstreams: tuple[Upstream, ...]
    store: str
    max_bytes: int | None = None
    max_flights: int | None = None
    max_pass_through: int = 64
    connections: int = 1
    min_rate: int = 1024
    first_byte: float = 60.0
    silence: float = 60.0
    question: float = 60.0
    outage: float = 60.0
    tag_ttl: float = 60.0
    prefetch: int = 0
    docker_config: str | None = None
    workers: int = field(default_factory=_workers)
    listen: str = "127.0.0.1:5000"
    certfile: str | None = None
    keyfile: str | None = None
    max_connections: int = 2048
    grace: float = 30.0
    keep: bool = True
    stuck_after: float = 60.0
    access_log: bool = True
    x_accel_redirect: str | None = None
    shared_group: bool = False
    cluster: ClusterSettings | None = None
    mirrors: tuple[Mirror, ...] = ()

    def __post_init__(self) -> None:
        """Raises `BadSetting`."""
        if not (self.upstreams or self.mirrors):
            raise BadSetting(
                "upstream", "is needed: the URL of the registry to pull from; or a mirror"
            )
        paths = [each.path for each in self.mirrors]
        if len(set(paths)) < len(paths):
            raise BadSetting("mirror", "there are several with the same path")
        names = [each.namespace for each in self.upstreams]
        for name in names:
            if names.count(name) > 1:
                which = "without a namespace" if name is None else f"of {name}"
                raise BadSetting("upstream", f"there are several {which}")
        if not self.store:
            raise BadSetting("store", "is needed: the folder that blobs are kept in")
        _check_connections(self.connections)
        _check_limits(self, _LEAST)
        if self.keyfile is not None and self.certfile is None:
            raise BadSetting("keyfile", "goes with certfile")
        prefix = self.x_accel_redirect
        if prefix is not None and not re.fullmatch(r"/(?:[\w.-]+/)*", prefix, re.ASCII):
            reason = (
                f"begins and ends with a slash, such as /blobs-of-the-store/, unlike {prefix!r}"
            )
            raise BadSetting("x_accel_redirect", reason)
        _ = self.address

    @property
    def stall(self) -> float:
        """Seconds after which a client without a byte is given up; its upstream was waited for."""
        own = [each for told in self.upstreams for each in (told.first_byte, told.silence) if each]
        return max(60.0, self.first_byte, self.silence, self.outage, *own) + 10.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; an empty host for all addresses."""
        found = _ADDRESS.fullmatch(self.listen)
        if found is None or int(found["port"]) > 65535:
            raise BadSetting("listen", f"{self.listen[:200]!r} is not HOST:PORT or [IPv6]:PORT")
        return found["six"] or found["host"], int(found["port"])

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> Self:
        """From the table of a TOML file or of the command line; `upstream` is a list of tables.

        Raises:
            BadSetting: a value is not valid, or a key is unknown.
        """
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key == "upstream":
                values["upstreams"] = tuple(_upstreams(value))
            elif key == "mirror":
                values["mirrors"] = tuple(_mirrors(value))
            elif (read := _READ.get(key)) is None:
                known = ", ".join(["upstream", "mirror", *_READ])
                raise BadSetting(key, f"is no setting; there are {known}")
            else:
                values[key] = _reading(key, read, value)
        values.setdefault("upstreams", ())
        values.setdefault("store", "")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the text that `to_json` made."""
        values = json.loads(text)
        upstreams = tuple(
            Upstream(**{**each, "more": tuple(each["more"])}) for each in values.pop("upstreams")
        )
        if values["cluster"] is not None:
            values["cluster"] = ClusterSettings(**values["cluster"])
        values["mirrors"] = tuple(Mirror(**each) for each in values["mirrors"])
        return cls(upstreams, **values)

    def to_json(self) -> str:
        """All settings as text."""
        return json.dumps(asdict(self))

    def to_environment(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Put the settings into the environment of processes that are started from now on."""
        environment[SETTINGS_VARIABLE] = self.to_json()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings of `to_environment`; without them, of the file that SHMSTREAM_CONFIG names.

        Raises:
            BadSetting: the environment has neither, or the file is not valid.
        """
        if (text := environment.get(SETTINGS_VARIABLE)) is not None:
            return cls.from_json(text)
        if (path := environment.get(CONFIG_VARIABLE)) is not None:
            return cls.from_file(path)
        raise BadSetting("", f"set {CONFIG_VARIABLE} to the path of a TOML file with the settings")

    @classmethod
    def from_file(cls, path: str) -> Self:
        """From a TOML file.

        Raises:
            BadSetting: the file cannot be read, or is not valid.
        """
        try:
            return cls.from_table(read_table(path))
        except BadSetting as error:
            raise BadSetting(error.key, error.reason, error.where or path) from error


def read_table(path: str) -> dict[str, object]:
    """The table of a TOML file.

    Raises:
        BadSetting: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting("", f"cannot be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        raise BadSetting("", f"is no UTF-8: {error}", path) from error
    except tomllib.TOMLDecodeError as error:
        raise BadSetting("", f"is no TOML: {error}", path) from error


def _check_limits(settings: object, limits: Mapping[str, float]) -> None:
    """Raises `BadSetting`: a number is too small, or a time too long."""
    for key, least in limits.items():
        value = getattr(settings, key)
        if value is not None and not value >= least:
            raise BadSetting(key, f"is at least {least}, not {value}")
        if key in _WAITS and value is not None and value > _LONGEST_WAIT:
            raise BadSetting(key, f"is at most a day, {_LONGEST_WAIT:g} s, not {value:g}")


_WAITS = ("first_byte", "silence", "question", "outage", "connect")
_LONGEST_WAIT = 24 * 3600.0  # s
_LEAST: dict[str, float] = {
    "max_bytes": 0,
    "max_flights": 1,
    "max_pass_through": 0,
    "min_rate": 0,
    "first_byte": 0.1,
    "silence": 0.1,
    "question": 0.1,
    "outage": 0,
    "tag_ttl": 0,
    "prefetch": 0,
    "workers": 1,
    "max_connections": 1,
    "grace": 0,
    "stuck_after": 0,
}
_LEAST_OF_UPSTREAM: dict[str, float] = {
    **dict.fromkeys(("first_byte", "silence", "question", "connect"), 0.1),
    "max_downloads": 1,
}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"is a text, not {value!r}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"is a number, not {value!r}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is true or false, not {value!r}")
    return value


def _size(value: object) -> int:
    return units.size(value) if isinstance(value, str) else _count(value)


def _duration(value: object) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    return units.duration(value) if isinstance(value, str) else float(_count(value))


def _cluster(table: object) -> ClusterSettings:
    needed = {"url", "advertise", "secret_file"}
    if not isinstance(table, Mapping) or not needed <= set(table) <= set(_READ_CLUSTER):
        what = "url, advertise and secret_file"
        known = ", ".join(sorted(set(_READ_CLUSTER) - needed))
        raise BadSetting("cluster", f"is a table with {what}; it may have {known}")
    values: dict[str, Any] = {
        key: _reading(f"cluster, {key}", _READ_CLUSTER[key], value) for key, value in table.items()
    }
    return ClusterSettings(**values)


_READ_CLUSTER: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(("url", "advertise", "secret_file", "listen", "password_file"), _text),
    **dict.fromkeys(("certfile", "keyfile", "cafile"), _text),
    **dict.fromkeys(("fan", "max_peers"), _count),
    "lease": _duration,
}
"""How each setting of a cluster is read from a table."""

assert set(_READ_CLUSTER) == {each.name for each in fields(ClusterSettings)}

_READ: dict[str, Callable[[object], object]] = {
    "store": _text,
    "listen": _text,
    "workers": _count,
    "max_bytes": _size,
    "max_flights": _count,
    "max_pass_through": _count,
    "connections": _count,
    "min_rate": _size,
    "first_byte": _duration,
    "silence": _duration,
    "question": _duration,
    "outage": _duration,
    "tag_ttl": _duration,
    "prefetch": _count,
    "docker_config": _text,
    "certfile": _text,
    "keyfile": _text,
    "max_connections": _count,
    "grace": _duration,
    "keep": _flag,
    "stuck_after": _duration,
    "access_log": _flag,
    "x_accel_redirect": _text,
    "shared_group": _flag,
    "cluster": _cluster,
}
"""How each setting is read from a table."""

assert set(_READ) | {"upstreams", "mirrors"} == {each.name for each in fields(Settings)}


def _reading(key: str, read: Callable[[object], object], value: object) -> object:
    try:
        return read(value)
    except BadSetting:
        raise
    except ValueError as error:
        raise BadSetting(key, str(error)) from error


def _urls(value: object) -> list[str]:
    entries = value if isinstance(value, list) and value else [value]
    return [_text(each) for each in entries]


_READ_UPSTREAM: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(("namespace", "prefix", "cafile", "certfile", "keyfile"), _text),
    "url": _urls,
    "docker_config": _text,
    **dict.fromkeys(("insecure", "anonymous"), _flag),
    **dict.fromkeys(("first_byte", "silence", "question", "connect"), _duration),
    **dict.fromkeys(("connections", "max_downloads"), _count),
}
"""How each setting of an upstream is read from a table."""

assert set(_READ_UPSTREAM) | {"more"} == {each.name for each in fields(Upstream)}


def _upstreams(tables: object) -> list[Upstream]:
    if not isinstance(tables, list):
        raise BadSetting("upstream", "is a list of tables: [[upstream]]")
    return [_upstream(f"upstream {number}", table) for number, table in enumerate(tables, 1)]


def _upstream(key: str, table: object) -> Upstream:
    if not isinstance(table, Mapping) or not {"url"} <= set(table) <= set(_READ_UPSTREAM):
        known = ", ".join(sorted(set(_READ_UPSTREAM) - {"url", "namespace"}))
        what = f"`url`, and `namespace` if it is not the default; it may have {known}"
        raise BadSetting(key, f"is a table with {what}")
    values: dict[str, Any] = {
        name: _reading(f"{key}, {name}", _READ_UPSTREAM[name], value)
        for name, value in table.items()
    }
    url, *more = values.pop("url")
    try:
        return Upstream(values.pop("namespace", None), url, tuple(more), **values)
    except BadSetting as error:
        raise BadSetting(f"{key}, {error.key}", error.reason) from error


def _mirrors(tables: object) -> list[Mirror]:
    if not isinstance(tables, list):
        raise BadSetting("mirror", "is a list of tables: [[mirror]]")
    found = []
    for number, table in enumerate(tables, 1):
        try:
            found.append(Mirror.from_table(table))
        except ValueError as error:
            raise BadSetting(f"mirror {number}", str(error)) from error
    return found
