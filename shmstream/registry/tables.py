"""The tables of a file with settings: an upstream, a cluster; and how each value is read.

    READ, READ_UPSTREAM, READ_CLUSTER    by name, the reader of each setting: it takes what a file
                                         or a variable has, gives the value, or says what is wrong
    UPSTREAM, MIRROR, CLUSTER            reads a whole table, and tells every mistake in it

`configuration` makes its model of these. `settings` has what all of it makes: `Settings`.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from shmstream import units
from shmstream.cluster import Cluster
from shmstream.cluster.cluster import NotValid
from shmstream.mirror import settings as mirror
from shmstream.sources.base import check_connections

T = TypeVar("T")

_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::\d{1,5})?", re.IGNORECASE)
_PREFIX = re.compile(r"[a-z0-9._-]+(?:/[a-z0-9._-]+)*")
_FURTHER = re.compile(r",\s*(?=https?://)")  # between the URLs of `--upstream`
_NAMED = "{namespace}"
CLIENT = "client"
"""The value of `credentials` with which an upstream gets those of clients."""


class BadSetting(ValueError):
    """A setting is not valid.

    `key` is its name in a file, `where` the path of the file, if any, and `line` where it stands
    there. `mistakes` has all that are not valid, of which this may be one.
    """

    def __init__(
        self, key: str, reason: str, where: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(key, reason, where, line)
        self.key = key
        self.reason = reason
        self.where = where
        self.line = line

    @property
    def mistakes(self) -> list[BadSetting]:
        """Each setting that is not valid."""
        return [self]

    @property
    def told(self) -> str:
        """A sentence for people, with the line."""
        return f"{self}." + ("" if self.line is None else f" Line {self.line}.")

    def __str__(self) -> str:
        file = f"{self.where}: " if self.where else ""
        return file + (f"{self.key}: {self.reason}" if self.key else self.reason)


class BadSettings(BadSetting):
    """Several settings are not valid, or one."""

    def __init__(self, mistakes: Sequence[BadSetting]) -> None:
        first = mistakes[0]
        super().__init__(first.key, first.reason, first.where, first.line)
        self._mistakes = list(mistakes)

    def __reduce__(self) -> tuple[type[BadSettings], tuple[list[BadSetting]]]:
        return type(self), (self._mistakes,)

    @property
    def mistakes(self) -> list[BadSetting]:
        """Each setting that is not valid."""
        return self._mistakes

    @property
    def told(self) -> str:
        """One sentence for each mistake, each on its line."""
        if len(self._mistakes) == 1:
            return self._mistakes[0].told
        lines = [f"  {each.told}" for each in self._mistakes]
        return "\n".join([f"{len(lines)} settings are not valid:", *lines])

    def __str__(self) -> str:
        return "; ".join(map(str, self._mistakes))


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
        credentials: "client": it gets what each client sends as its name and password, and no
            credentials of this cache; None: those of this cache.
        docker_config, first_byte, silence, question: as in `Settings`, for it alone.
        connect: seconds to wait for a connection; None: 5 for a question, 10 for a download.
        max_downloads: downloads from one URL of it at one time, of one worker; None for no limit.
        max_pulls: how many manifests may be got from it in how many seconds, by all workers
            together, as Docker Hub counts; None for no limit.
        max_rate: bytes a second of blobs from it, of all workers together; None for no limit.
        connections: how many connections one blob may come over; None: as `Settings` says.
        unused_for, kept_for: as in `Settings`, for its images alone.
        allow: names of the clients that may pull from it; "*" for all; None for all with a name.
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
    credentials: str | None = None
    docker_config: str | None = None
    first_byte: float | None = None
    silence: float | None = None
    question: float | None = None
    connect: float | None = None
    max_downloads: int | None = None
    max_rate: int | None = None
    max_pulls: tuple[int, float] | None = None
    connections: int | None = None
    allow: tuple[str, ...] | None = None
    unused_for: float | None = None
    kept_for: float | None = None

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
        found: list[BadSetting] = []
        for check in (self._check_namespace, self._check_urls, self._check_prefix):
            try:
                check()
            except BadSetting as error:
                found.append(error)
        found += self._contradictions()
        found += out_of_bounds(self, _LEAST_OF_UPSTREAM)
        if len(found) > 1:
            raise BadSettings(found)
        if found:
            raise found[0]

    def _check_namespace(self) -> None:
        if self.namespace is not None:
            name = self.namespace.removeprefix("*.") if self.is_pattern else self.namespace
            if name != "*" and not _NAMESPACE.fullmatch(name):
                what = "no name of a registry, such as docker.io"
                raise BadSetting("namespace", f"{self.namespace[:200]!r} is {what}")
            object.__setattr__(self, "namespace", self.namespace.lower())

    def _check_urls(self) -> None:
        object.__setattr__(self, "url", _checked_url(self.url, is_pattern=self.is_pattern))
        more = tuple(_checked_url(each, is_pattern=self.is_pattern) for each in self.more)
        object.__setattr__(self, "more", more)

    def _check_prefix(self) -> None:
        prefix = self.prefix.strip("/")
        if prefix and not _PREFIX.fullmatch(prefix):
            reason = f"{self.prefix[:200]!r} is no beginning of a repository's name"
            raise BadSetting("prefix", reason)
        object.__setattr__(self, "prefix", prefix)

    def _contradictions(self) -> Iterator[BadSetting]:
        if self.keyfile is not None and self.certfile is None:
            yield BadSetting("keyfile", "goes with certfile")
        if self.anonymous and self.docker_config is not None:
            yield BadSetting("anonymous", "and docker_config contradict each other")
        if self.credentials is not None:
            yield from self._contradictions_of_credentials(self.credentials)
        try:
            check_connections_setting(self.connections)
        except BadSetting as error:
            yield error

    def _contradictions_of_credentials(self, told: str) -> Iterator[BadSetting]:
        if told != CLIENT:
            reason = f"is {CLIENT!r}, to pass on those of clients, or left out; not {told[:200]!r}"
            yield BadSetting("credentials", reason)
            return
        for other in ("anonymous", "docker_config"):
            if getattr(self, other):
                yield BadSetting("credentials", f"and {other} contradict each other")
        if self.allow is not None:
            reason = "and allow contradict each other: the upstream itself says which client may"
            yield BadSetting("credentials", reason)
        if self.is_open:
            reason = f"does not go with {_NAMED} as a host, which could get a client's password"
            yield BadSetting("credentials", reason)

    @property
    def is_pattern(self) -> bool:
        """Whether it is for many namespaces."""
        return self.namespace == "*" or (self.namespace or "").startswith("*.")

    @property
    def is_open(self) -> bool:
        """Whether clients may have hosts asked that the operator has not chosen."""
        hosts = [each.partition("://")[2].partition("/")[0] for each in (self.url, *self.more)]
        return self.is_pattern and any(_NAMED in each for each in hosts)

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

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Self:
        """From what JSON makes of its fields."""
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def as_table(self) -> dict[str, object]:
        """The table that a file would have for it."""
        table = {each.name: getattr(self, each.name) for each in fields(self)}
        more = table.pop("more")
        table["url"] = [self.url, *more] if more else self.url
        table["max_pulls"] = _pulls_as_text(self.max_pulls)
        table["allow"] = None if self.allow is None else list(self.allow)
        usual = {each.name: each.default for each in fields(self)}
        return {
            name: value
            for name, value in table.items()
            if value is not None and (name == "url" or value != usual[name])
        }

    def __str__(self) -> str:
        urls = " or ".join((self.url, *self.more))
        return urls if self.namespace is None else f"{self.namespace} from {urls}"


def _pulls_as_text(pulls: tuple[int, float] | None) -> str | None:
    """As `_pulls` reads it: a time has no exponent, and loses no digit."""
    return None if pulls is None else f"{pulls[0]}/{str(pulls[1]).removesuffix('.0')}s"


def check_connections_setting(connections: int | None) -> None:
    """Raises `BadSetting`: no blob can come over so many connections."""
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
    if "@" in url:  # no message may repeat it
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

    def __post_init__(self) -> None:
        """Raises `BadSetting`."""
        found = []
        if "@" in self.url and ":" in self.url.partition("://")[2].rpartition("@")[0]:
            found.append(BadSetting("url", "a password does not belong here: see password_file"))
        try:
            self._with("0" * 16, None)
        except NotValid as error:
            found += [BadSetting(key, reason) for key, reason in error.mistakes]
        if found:
            raise BadSettings(found)

    def _with(self, secret: str, password: str | None) -> Cluster:
        given = asdict(self)
        del given["secret_file"], given["password_file"]
        return Cluster(**given, secret=secret, password=password)

    def make(self) -> Cluster:
        """The cluster. Reads the files.

        Raises:
            BadSetting: a file cannot be read, or has no secret or certificate in it.
        """
        secret = _line_of("secret_file", self.secret_file)
        file = self.password_file
        password = None if file is None else _line_of("password_file", file)
        try:
            cluster = self._with(secret, password)
            cluster.contexts()
        except NotValid as error:
            [(_, reason)] = error.mistakes
            raise BadSetting("cluster, secret_file", reason) from error
        except OSError as error:  # ssl.SSLError is one
            reason = f"there is no certificate and key, or no authority: {error}"
            raise BadSetting("cluster, certfile", reason) from error
        return cluster


def _line_of(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"cluster, {key}", f"{path} cannot be read: {error}") from error


def read_text(path: str) -> str:
    """The text of a file with settings.

    Raises:
        BadSetting: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadSetting("", f"cannot be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        raise BadSetting("", f"is no UTF-8: {error}", path) from error


def parse_table(text: str, path: str) -> dict[str, object]:
    """The table of a TOML file.

    Raises:
        BadSetting: it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadSetting("", f"is no TOML: {error}", path) from error


def out_of_bounds(settings: object, limits: Mapping[str, float]) -> Iterator[BadSetting]:
    """Numbers that are too small, and times that are too long."""
    for key, least in limits.items():
        value = getattr(settings, key)
        if value is not None and not value >= least:
            yield BadSetting(key, f"is at least {least}, not {value}")
        elif key in _WAITS and value is not None and value > _LONGEST_WAIT:
            yield BadSetting(key, f"is at most a day, {_LONGEST_WAIT:g} s, not {value:g}")


_WAITS = ("first_byte", "silence", "question", "outage", "connect")
_LONGEST_QUOTA = 31 * 24 * 3600.0  # s
_LONGEST_WAIT = 24 * 3600.0  # s
_LEAST_OF_UPSTREAM: dict[str, float] = {
    **dict.fromkeys(("first_byte", "silence", "question", "connect"), 0.1),
    "max_downloads": 1,
    "max_rate": 1024,
    "unused_for": 0,
    "kept_for": 0,
}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"is a text, not {value!r}")
    return value


def count(value: object) -> int:
    """A number.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"is a number, not {value!r}")
    return value


def flag(value: object) -> bool:
    """True or false.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"is true or false, not {value!r}")
    return value


def names(value: object) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"is a list of names, not {value!r}")
    return tuple(_text(each) for each in value)


def _size(value: object) -> int:
    return units.size(value) if isinstance(value, str) else count(value)


def _rate(value: object) -> int:
    return _size(value.removesuffix("/s").rstrip() if isinstance(value, str) else value)


def _pulls(value: object) -> tuple[int, float]:
    number, slash, time = _text(value).partition("/")
    time = time.strip()
    if not (slash and time) or not re.fullmatch(r"[1-9]\d{0,8}", number.strip(), re.ASCII):
        raise ValueError(f'is a number in a time, such as "100/6h", not {value!r}')
    seconds = units.duration(time if time[0].isdigit() else f"1{time}")
    if not 1 <= seconds <= _LONGEST_QUOTA:
        raise ValueError(f'has a time of 1 s to 31 days, such as "100/6h", unlike {value!r}')
    return int(number), seconds


def _duration(value: object) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return units.duration(value)
    try:
        return float(count(value))
    except OverflowError:  # an int of hundreds of digits
        raise ValueError(f"is a time, not {value!r}") from None


READ_CLUSTER: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(("url", "advertise", "secret_file", "listen", "password_file"), _text),
    **dict.fromkeys(("certfile", "keyfile", "cafile"), _text),
    **dict.fromkeys(("fan", "max_peers"), count),
    "lease": _duration,
}
"""How each setting of a cluster is read from a table."""

assert set(READ_CLUSTER) == {each.name for each in fields(ClusterSettings)}

READ: dict[str, Callable[[object], object]] = {
    "store": _text,
    "listen": _text,
    "workers": count,
    "max_bytes": _size,
    "max_flights": count,
    "max_pass_through": count,
    "connections": count,
    "hash_named": flag,
    "min_rate": _size,
    "first_byte": _duration,
    "silence": _duration,
    "question": _duration,
    "outage": _duration,
    "tag_ttl": _duration,
    "prefetch": count,
    **dict.fromkeys(("preload", "preload_platforms", "immutable_tags", "admins"), names),
    **dict.fromkeys(("preload_every", "unused_for", "kept_for"), _duration),
    "docker_config": _text,
    "certfile": _text,
    "keyfile": _text,
    "client_ca": _text,
    "htpasswd": _text,
    "tokens": _text,
    "max_connections": count,
    "grace": _duration,
    "keep": flag,
    "stuck_after": _duration,
    "access_log": flag,
    "log_format": _text,
    "x_accel_redirect": _text,
    "shared_group": flag,
}
"""How each setting is read from a table."""


def _urls(value: object) -> list[str]:
    entries = value if isinstance(value, list) and value else [value]
    return [_text(each) for each in entries]


READ_UPSTREAM: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(("namespace", "prefix", "cafile", "certfile", "keyfile"), _text),
    "credentials": _text,
    "url": _urls,
    "allow": names,
    "docker_config": _text,
    **dict.fromkeys(("insecure", "anonymous"), flag),
    **dict.fromkeys(("first_byte", "silence", "question", "connect"), _duration),
    **dict.fromkeys(("unused_for", "kept_for"), _duration),
    **dict.fromkeys(("connections", "max_downloads"), count),
    "max_rate": _rate,
    "max_pulls": _pulls,
}
"""How each setting of an upstream is read from a table."""

assert set(READ_UPSTREAM) | {"more"} == {each.name for each in fields(Upstream)}


def upstream_of(values: Mapping[str, Any]) -> Upstream:
    """The upstream of values that were read by `READ_UPSTREAM`.

    Raises:
        BadSetting: a value is not valid.
    """
    given = dict(values)
    url, *more = given.pop("url")
    return Upstream(given.pop("namespace", None), url, tuple(more), **given)


@dataclass(frozen=True)
class Table(Generic[T]):
    """How a table of a file is read.

    Attributes:
        what: it is, for people.
        readers: of its keys.
        needed: keys that it must have; each with a value with which all else can be checked where
            the table has none, or a wrong one.
        make: what it is, of good values; it raises `BadSetting` for values that do not go together.
    """

    what: str
    readers: Mapping[str, Callable[[object], object]]
    needed: Mapping[str, object]
    make: Callable[[Mapping[str, Any]], T]

    def read(self, value: object) -> T:
        """What the table is.

        Raises:
            BadSettings: every mistake; the key of a mistake of the table itself is empty.
        """
        if not isinstance(value, Mapping):
            raise BadSettings([BadSetting("", self.what)])
        good, found = dict(self.needed), []
        for key, each in value.items():
            if (read := self.readers.get(key)) is None:
                found.append(BadSetting(str(key), f"is no setting here: it {self.what}"))
                continue
            try:
                good[key] = read(each)
            except ValueError as error:
                found.append(BadSetting(key, str(error)))
        if not set(self.needed) <= set(value):
            found.append(BadSetting("", self.what))
        bad = {each.key for each in found}
        try:
            made = self.make(good)
        except BadSetting as error:
            found += [each for each in error.mistakes if each.key not in bad]
        if found:
            raise BadSettings(found)
        return made


def _may_have(readers: Mapping[str, object], *told: str) -> str:
    return "it may have " + ", ".join(sorted(set(readers) - set(told)))


UPSTREAM = Table(
    "is a table with `url`, and `namespace` if it is not the default; "
    + _may_have(READ_UPSTREAM, "url", "namespace"),
    READ_UPSTREAM,
    {"url": ["https://registry.example"]},
    upstream_of,
)
MIRROR = Table(
    f"is a table with path, kind and url; {_may_have(mirror.READ, 'path', 'kind', 'url')}",
    mirror.READ,
    {"path": "/path", "kind": "http", "url": "https://server.example"},
    lambda values: mirror.Mirror(**values),
)
_OF_CLUSTER = ("url", "advertise", "secret_file")
CLUSTER = Table(
    f"is a table with url, advertise and secret_file; {_may_have(READ_CLUSTER, *_OF_CLUSTER)}",
    READ_CLUSTER,
    {"url": "redis://redis", "advertise": "node:1", "secret_file": "/secret"},
    lambda values: ClusterSettings(**values),
)
