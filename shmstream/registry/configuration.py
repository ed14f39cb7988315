"""Reads the settings of the registry from wherever an operator writes them, and tells all mistakes.

    options        of the command line                 come before
    environment    SHMSTREAM_SERVE_TAG_TTL=30s, SHMSTREAM_SERVE_CLUSTER__LEASE=4s, come before
    a file         TOML, `tag_ttl = "30s"`

`read` gives `Settings`, or raises one error with every mistake: where it is, and what to do. One
model of pydantic-settings merges the three; it is made of the readers in `tables`, so that a
new setting is added there alone. Workers do not read all this again: they get `Settings` as
JSON.

Needs pydantic-settings, of the extra `serve`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

try:
    import tomli_w
    from pydantic import (
        BeforeValidator,
        PlainValidator,
        ValidationError,
        create_model,
    )
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        NoDecode,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )
except ImportError as _missing:
    raise ImportError(
        "`serve` needs: pip install 'shmstream[serve]'", name="pydantic_settings"
    ) from _missing

from shmstream.registry import tables as known
from shmstream.registry.tables import BadSetting, BadSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import ErrorDetails

S = TypeVar("S")

PREFIX = "SHMSTREAM_SERVE_"
"""How the name of each environment variable begins."""

_Reader = Callable[[object], object]
_Place = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"'-]+)\s*\]")
_KEY = re.compile(r"\s*([\w.\"'-]+)\s*=")
_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL
)


# The model.


def _field(read: _Reader) -> Any:
    return Annotated[Any, NoDecode, BeforeValidator(read)], None


def _as_upstreams(value: object) -> object:
    if not isinstance(value, list):
        raise BadSetting("upstream", "is a list of tables: [[upstream]]")
    return value


def _as_mirrors(value: object) -> object:
    if not isinstance(value, list):
        raise BadSetting("mirror", "is a list of tables: [[mirror]]")
    return value


def _upstream_table(text: str) -> dict[str, object]:
    try:
        return known.Upstream.parse(text).as_table()
    except BadSetting:
        return {"url": text}  # which is told when it is checked


def _as_cluster(value: object) -> known.ClusterSettings:
    return known.CLUSTER.read({"url": value} if isinstance(value, str) else value)


class _Environment(EnvSettingsSource):
    """Environment variables, as what they would be in a file."""

    def __call__(self) -> dict[str, Any]:
        found = {
            key: _plain(known.READ.get(key), value) for key, value in super().__call__().items()
        }
        if isinstance(upstreams := found.get("upstream"), str):  # docker.io=https://a https://b
            found["upstream"] = [_upstream_table(each) for each in upstreams.split()]
        if isinstance(cluster := found.get("cluster"), dict):
            found["cluster"] = {
                key: _plain(known.READ_CLUSTER.get(key), value) for key, value in cluster.items()
            }
        return found


def _plain(read: _Reader | None, value: object) -> object:
    if not isinstance(value, str):
        return value
    if read is known.count and re.fullmatch(r"[+-]?\d{1,18}", value):
        return int(value)
    if read is known.names:
        return value.split()
    if read is known.flag:
        return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False,
                "no": False, "off": False}.get(value.lower(), value)  # fmt: skip
    return value


class _Base(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        case_sensitive=False,
        validate_default=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, the environment, the file; the first one that has a setting counts."""
        assert isinstance(init_settings, InitSettingsSource)
        given, ignored = (init_settings.init_kwargs[each] for each in ("given", "ignored"))
        assert isinstance(given, _Given)
        tables = [given.options, given.table, given.usual]
        if given.reads_environment:
            tables.insert(1, _Environment(settings_cls)())
        kept = [{key: each[key] for key in each if key not in ignored} for each in tables]
        return tuple(InitSettingsSource(settings_cls, each) for each in kept)


_fields: dict[str, Any] = {key: _field(read) for key, read in known.READ.items()}
_Upstream: Any = Annotated[Any, BeforeValidator(known.UPSTREAM.read)]
_Mirror: Any = Annotated[Any, BeforeValidator(known.MIRROR.read)]
_Cluster: Any = Annotated[dict[str, Any] | None, NoDecode, PlainValidator(_as_cluster)]
_fields["upstream"] = (Annotated[list[_Upstream], NoDecode, BeforeValidator(_as_upstreams)], [])
_fields["mirror"] = (Annotated[list[_Mirror], NoDecode, BeforeValidator(_as_mirrors)], [])
_fields["cluster"] = (_Cluster, None)
_Model: Callable[..., BaseSettings] = create_model("Configuration", __base__=_Base, **_fields)


# Reading.


@dataclass(frozen=True)
class Made(Generic[S]):
    """What all of it makes: `Settings`; and what tells the mistakes in its values."""

    make: Callable[..., S]
    mistakes: Callable[[Mapping[str, object]], list[BadSetting]]


def read(
    made: Made[S],
    options: Mapping[str, object],
    path: str | None,
    usual: Mapping[str, object] | None = None,
) -> S:
    """The settings; see `Settings.read`.

    Raises:
        BadSetting: at least one is not valid; all that are not are in its `mistakes`.
    """
    return _settings(made, _given(options, path, usual))


def placed(
    mistakes: Sequence[BadSetting], options: Mapping[str, object], path: str | None
) -> BadSettings:
    """Mistakes that were found later, such as files that cannot be used, with where they are.

    Raises:
        BadSetting: the file cannot be read any more.
    """
    given = _given(options, path, None)
    found = [each if each.where else _placed(given, each) for each in mistakes]
    return BadSettings(sorted(found, key=lambda each: each.line or 0))


def _given(
    options: Mapping[str, object], path: str | None, usual: Mapping[str, object] | None
) -> _Given:
    text = "" if path is None else known.read_text(path)
    table = {} if path is None else known.parse_table(text, path)
    return _Given(options, table, path, _lines(text), usual or {})


def _settings(made: Made[S], given: _Given) -> S:
    values, mistakes = _validated(given)
    if mistakes:
        # What is good is checked, too, so that one look at the file mends all.
        bad = frozenset(re.split("[ ,]", each.key)[0] for each in mistakes)
        if not values:
            values, more = _validated(given, bad)
            mistakes += more
        instead = {"upstream"} if "mirror" in bad else set()  # one of them is enough
        told = [each for each in made.mistakes(values) if each.key not in bad | instead]
        placed = (_placed(given, each) for each in mistakes + told)
        once = {str(each): each for each in placed}
        raise BadSettings(sorted(once.values(), key=lambda each: each.line or 0))
    try:
        return made.make(**{"store": "", **values})
    except BadSetting as error:
        raise BadSettings([_placed(given, each) for each in error.mistakes]) from error


def of_table(made: Made[S], table: Mapping[str, object]) -> S:
    """The settings of a table alone, without the environment; see `read`.

    Raises:
        BadSetting: as `read`.
    """
    return _settings(made, _Given({}, table, None, {}, {}, reads_environment=False))


@dataclass(frozen=True)
class _Given:
    """What was given, and where each part of it stands."""

    options: Mapping[str, object]
    table: Mapping[str, object]
    path: str | None
    lines: Mapping[_Place, int]
    usual: Mapping[str, object]
    reads_environment: bool = True

    @property
    def environment(self) -> dict[str, str]:
        """By setting, such as `cluster, lease`, the variable that has it."""
        names = [each for each in os.environ if each.upper().startswith(PREFIX)]
        return {each[len(PREFIX) :].lower().replace("__", ", "): each for each in names}


def _placed(given: _Given, mistake: BadSetting) -> BadSetting:
    """The mistake with where it is: an option, a variable, or a line of the file."""
    if not given.reads_environment:
        return mistake  # there is only a table
    first, *inner = mistake.key.split(", ")
    name, _, number = first.partition(" ")
    is_elsewhere = name in given.table or any(
        each.split(", ")[0] == name for each in given.environment
    )
    if name in given.options or (given.path is None and not is_elsewhere):
        return BadSetting("--" + name.replace("_", "-"), mistake.reason)
    variable = given.environment.get(mistake.key)
    if variable is not None or (name not in given.table and name in given.environment):
        return BadSetting(variable or given.environment[name], mistake.reason)
    place: _Place = (name, *((int(number) - 1,) if number else ()), *inner)
    line = None
    while place and (line := given.lines.get(place)) is None:
        place = place[:-1]
    return BadSetting(mistake.key, mistake.reason, given.path, line)


def _validated(
    given: _Given, ignored: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[BadSetting]]:
    """The good values for `Settings`, if each has the right form, and the mistakes."""
    try:
        model = _Model(given=given, ignored=ignored)
    except ValidationError as error:
        return {}, [mistake for each in error.errors(include_url=False)
                    for mistake in _mistakes_in(each)]  # fmt: skip
    values = {key: value for key, value in vars(model).items() if value is not None}
    values["upstreams"] = tuple(values.pop("upstream"))
    values["mirrors"] = tuple(values.pop("mirror"))
    return values, []


def _mistakes_in(error: ErrorDetails) -> list[BadSetting]:
    """The mistakes of one table, or the mistake in one value."""
    place, cause = error["loc"], error.get("ctx", {}).get("error")
    where = _named(place)
    if isinstance(cause, BadSettings):  # of a table
        return [BadSetting(f"{where}, {each.key}" if each.key else where, each.reason)
                for each in cause.mistakes]  # fmt: skip
    if error["type"] == "extra_forbidden":
        return [BadSetting(where, _unknown(str(place[0])))]
    reason = cause.reason if isinstance(cause, BadSetting) else str(cause or error["msg"])
    return [BadSetting(where, reason)]


def _named(place: _Place) -> str:
    """The name of a setting for people: `upstream 2, url`."""
    first, *rest = place
    if rest and isinstance(rest[0], int):
        first, rest = f"{first} {rest[0] + 1}", rest[1:]
    return ", ".join(map(str, [first, *rest]))


def _unknown(key: str) -> str:
    names = ["upstream", "mirror", *known.READ]
    near = difflib.get_close_matches(key, names, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"is no setting; {meant}there are {', '.join(names)}"


# Where a setting stands.


def _lines(text: str) -> dict[_Place, int]:
    """The line of each key and each table of a TOML file that is valid."""
    plain = _TEXT.sub(_blanked, text)
    found: dict[_Place, int] = {}
    tables: dict[str, int] = {}
    above: _Place = ()
    depth = 0
    for number, line in enumerate(plain.split("\n"), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if depth == 0 and header is not None:
            name = header[2].strip("\"'")
            if header[1] == "[[":
                tables[name] = tables.get(name, -1) + 1
                above = (name, tables[name])
            else:
                above = tuple(name.split("."))
            found.setdefault(above, number)
            continue
        if depth == 0 and key is not None:
            found.setdefault((*above, *key[1].strip("\"'").split(".")), number)
        depth += sum(line.count(each) for each in "[{") - sum(line.count(each) for each in "]}")
    return found


def _blanked(found: re.Match[str]) -> str:
    """A text or a comment without what could be taken for the syntax of TOML."""
    return re.sub(r"[\[\]{}=#]", "_", found[0])


# Telling.


def as_toml(settings: DataclassInstance, upstreams: Sequence[known.Upstream]) -> str:
    """The settings as a file that `read` reads."""
    table = _without_none(asdict(settings))
    table["upstream"] = [each.as_table() for each in upstreams]
    table["mirror"] = [_without_none(each) for each in table.pop("mirrors")]
    del table["upstreams"]
    if not table["mirror"]:
        del table["mirror"]
    last = ("cluster", "upstream", "mirror")
    return tomli_w.dumps({key: table[key] for key in sorted(table, key=lambda each: each in last)})


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
