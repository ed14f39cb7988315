"""`Settings`: all settings of the registry, checked once, the same for all workers.

    command line   cli/serve       options; they override the environment and the file
    environment    SHMSTREAM_SERVE_..., which override the file
    a file         from_file       TOML; sizes and durations as text: "100GiB", "90s"
    JSON           to_json         from the parent process to its workers

`configuration` reads the first three; `tables` has how each value is read.

Settings hold no secrets: a URL with a password is refused. Credentials for upstreams are in a
Docker `config.json`; the settings hold its path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Self

from shmstream.mirror.settings import Mirror
from shmstream.registry.references import Reference
from shmstream.registry.tables import (
    READ,
    Address,
    BadSetting,
    BadSettings,
    ClusterSettings,
    Upstream,
    check_connections_setting,
    out_of_bounds,
)

__all__ = [
    "Address",
    "BadSetting",
    "BadSettings",
    "ClusterSettings",
    "Settings",
    "Upstream",
]

SETTINGS_VARIABLE = "SHMSTREAM_SETTINGS"
"""The environment variable that holds the settings of the workers, as JSON."""
CONFIG_VARIABLE = "SHMSTREAM_CONFIG"
"""The environment variable that holds the path of a TOML file, for other servers than ours."""

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]\s]*)):(?P<port>\d{1,5})")


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
        connections: how many connections one blob may come over from an upstream or a mirror that
            does not say it itself. None: 1 from an upstream, and from a mirror as for `Store`.
        hash_named: whether a file of a mirror that nothing verifies is hashed, as for `Store`.
        min_rate: bytes a second that an upstream must give of a blob, or it counts as stalled.
        first_byte: how long an upstream may take to begin its answer.
        silence: how long it may give no byte in the middle of a blob.
        question: how long all of a question to it may take, such as the meaning of a tag.
        outage: how long it may be away in the middle of a blob that clients read.
        tag_ttl: how long the meaning of a tag is believed before the upstream is asked again.
        prefetch: how many layers are fetched at once when their manifest is asked for; 0 for none.
        preload: images to pull before a client asks: at the start, and every `preload_every`.
        preload_every: 0: at the start only.
        preload_platforms: for which platforms, such as "linux/arm64" or "all"; none: this host's.
        immutable_tags: patterns of tags that never change their meaning, such as "v*.*.*": it is
            asked once.
        unused_for: an image that nobody has asked for in so long is removed; None: never.
        kept_for: an image that has been here for so long is removed; None: never.
        admins: names of clients that may see and remove images, and have images pulled.
        docker_config: path of a Docker `config.json` with the credentials of upstreams.
        workers: number of worker processes.
        listen: `HOST:PORT`, `[IPv6]:PORT`; port 0 for any free one.
        certfile: path of a certificate in PEM, to serve TLS.
        keyfile: path of its key in PEM, unless `certfile` contains the key.
        client_ca: path of a file in PEM with the authorities of clients' certificates; every client
            has to show one then.
        htpasswd: path of a file with the names of clients, and their passwords hashed by bcrypt.
        tokens: path of a file with names of clients and bearer tokens.
        max_connections: limit for one worker; beyond it requests are answered with 503.
        grace: how long a stopping worker lets its clients finish.
        keep: whether clients of a worker that ends are given to other workers.
        stuck_after: a worker without any progress for so long is killed; 0: never.
        access_log: whether to write an access log, to standard output.
        log_format: of the log on standard error: "text" or "json".
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
    connections: int | None = None
    hash_named: bool = True
    min_rate: int = 1024
    first_byte: float = 60.0
    silence: float = 60.0
    question: float = 60.0
    outage: float = 60.0
    tag_ttl: float = 60.0
    prefetch: int = 0
    preload: tuple[str, ...] = ()
    preload_every: float = 0.0
    preload_platforms: tuple[str, ...] = ()
    immutable_tags: tuple[str, ...] = ()
    unused_for: float | None = None
    kept_for: float | None = None
    admins: tuple[str, ...] = ()
    docker_config: str | None = None
    workers: int = field(default_factory=_workers)
    listen: str = "127.0.0.1:5000"
    certfile: str | None = None
    keyfile: str | None = None
    client_ca: str | None = None
    htpasswd: str | None = None
    tokens: str | None = None
    max_connections: int = 2048
    grace: float = 30.0
    keep: bool = True
    stuck_after: float = 60.0
    access_log: bool = True
    log_format: str = "text"
    x_accel_redirect: str | None = None
    shared_group: bool = False
    cluster: ClusterSettings | None = None
    mirrors: tuple[Mirror, ...] = ()

    def __post_init__(self) -> None:
        """Raises `BadSetting`."""
        found = list(_mistakes(self))
        if len(found) > 1:
            raise BadSettings(found)
        if found:
            raise found[0]

    @classmethod
    def mistakes(cls, values: Mapping[str, object]) -> list[BadSetting]:
        """What is not valid of these values, each for itself and all together."""
        candidate = object.__new__(cls)
        needed = {"upstreams": (), "store": ""}
        for each in fields(cls):
            value = values.get(each.name, needed.get(each.name, each.default))
            if value is MISSING and each.default_factory is not MISSING:
                value = each.default_factory()
            object.__setattr__(candidate, each.name, value)
        return list(_mistakes(candidate))

    @property
    def stall(self) -> float:
        """Seconds after which a client without a byte is given up; its upstream was waited for."""
        own = [each for told in self.upstreams for each in (told.first_byte, told.silence) if each]
        return max(60.0, self.first_byte, self.silence, self.outage, *own) + 10.0

    @property
    def asks_names(self) -> bool:
        """Whether clients have to tell who they are."""
        return self.htpasswd is not None or self.tokens is not None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; an empty host for all addresses."""
        found = _ADDRESS.fullmatch(self.listen)
        if found is None or int(found["port"]) > 65535:
            raise BadSetting("listen", f"{self.listen[:200]!r} is not HOST:PORT or [IPv6]:PORT")
        return found["six"] or found["host"], int(found["port"])

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> Self:
        """From a table as a TOML file has it; `upstream` is a list of tables.

        Raises:
            BadSetting: a value is not valid, or a key is unknown.
        """
        from shmstream.registry import configuration

        return configuration.of_table(configuration.Made(cls, cls.mistakes), table)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the text that `to_json` made."""
        values = json.loads(text)
        upstreams = tuple(map(Upstream.of_json, values.pop("upstreams")))
        if values["cluster"] is not None:
            values["cluster"] = ClusterSettings(**values["cluster"])
        values["mirrors"] = [Mirror(**each) for each in values["mirrors"]]
        lists = {key: tuple(each) for key, each in values.items() if isinstance(each, list)}
        return cls(upstreams, **{**values, **lists})

    def to_json(self) -> str:
        """All settings as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings of the parent process; without them, those of the file in SHMSTREAM_CONFIG.

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
        """From a TOML file, and the environment variables `SHMSTREAM_SERVE_...`, which come before.

        Raises:
            BadSetting: the file cannot be read, or is not valid.
        """
        return cls.read({}, path)

    @classmethod
    def read(
        cls,
        options: Mapping[str, object],
        path: str | None,
        usual: Mapping[str, object] | None = None,
    ) -> Self:
        """From options, the environment, and the TOML file at `path`; each comes before the next.

        `options` are in the form of a file's table. `usual` has values for settings that are
        nowhere else.

        Raises:
            BadSetting: at least one is not valid; all that are not are in its `mistakes`.
        """
        from shmstream.registry import configuration

        made = configuration.Made(cls, cls.mistakes)
        return configuration.read(made, options, path, usual)


def _mistakes(settings: Settings) -> Iterator[BadSetting]:
    """The mistakes in the settings."""
    if not settings.upstreams and not settings.mirrors:
        reason = "is needed: the URL of the registry to pull from. Or a mirror"
        yield BadSetting("upstream", reason)
    paths = [each.path for each in settings.mirrors]
    if len(set(paths)) < len(paths):
        yield BadSetting("mirror", "there are several with the same path")
    names = [each.namespace for each in settings.upstreams]
    for name in dict.fromkeys(each for each in names if names.count(each) > 1):
        which = "without a namespace" if name is None else f"of {name}"
        yield BadSetting("upstream", f"there are several {which}")
    if not settings.store:
        yield BadSetting("store", "is needed: the folder that blobs are kept in")
    yield from out_of_bounds(settings, _LEAST)
    for text in settings.preload:
        try:
            Reference.parse(text)
        except ValueError as error:
            yield BadSetting("preload", str(error))
    yield from _lonely(settings)
    if settings.log_format not in ("text", "json"):
        yield BadSetting("log_format", f"is text or json, not {settings.log_format!r}")
    prefix = settings.x_accel_redirect
    if prefix is not None and not re.fullmatch(r"/(?:[\w.-]+/)*", prefix, re.ASCII):
        reason = f"begins and ends with a slash, such as /blobs-of-the-store/, unlike {prefix!r}"
        yield BadSetting("x_accel_redirect", reason)
    try:
        _ = settings.address
    except BadSetting as error:
        yield error


def _lonely(settings: Settings) -> Iterator[BadSetting]:
    """Settings without another one that they need, and connections."""
    try:
        check_connections_setting(settings.connections)
    except BadSetting as error:
        yield error
    for key in ("keyfile", "client_ca"):
        if getattr(settings, key) is not None and settings.certfile is None:
            yield BadSetting(key, "goes with certfile")
    if settings.admins and not settings.asks_names:
        yield BadSetting("admins", "goes with htpasswd or tokens, which tell who a client is")
    for number, each in enumerate(settings.upstreams, 1):
        if each.allow is not None and not settings.asks_names:
            reason = "goes with htpasswd or tokens, which tell who a client is"
            yield BadSetting(f"upstream {number}, allow", reason)


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
    "preload_every": 0,
    "unused_for": 0,
    "kept_for": 0,
    "workers": 1,
    "max_connections": 1,
    "grace": 0,
    "stuck_after": 0,
}

assert set(READ) | {"upstreams", "cluster", "mirrors"} == {each.name for each in fields(Settings)}
