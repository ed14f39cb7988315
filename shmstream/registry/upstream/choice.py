"""`Upstreams`: which upstream a namespace means, of those that an operator has configured.

    docker.io         the upstream of that namespace, however a client writes its name
    *.example.com     every namespace that ends so, unless it has an upstream of its own
    *                 every other namespace that looks like the host of a registry
    none of these     no upstream: nobody gets an image of the same name from somewhere else

The longest pattern that fits counts. In the URL of a pattern, `{namespace}` stands for the
namespace that the client asks for. So a client chooses a host that this cache connects to. With `*`
that may be any host, so no private address is connected to (`http_guard`), unless the environment
allows that.

However a client writes the host of an upstream that has a namespace of its own, or none, it gets
that upstream, with what the operator allows there: never the same server by a pattern.

An upstream of a pattern is made when a client asks for it, and forgotten when many others were.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

from shmstream.registry import tables as configured
from shmstream.registry.api.routes import canonical
from shmstream.registry.settings import BadSetting, BadSettings, Settings
from shmstream.registry.upstream import credentials
from shmstream.registry.upstream.upstream import Upstream
from shmstream.sources.http_tls import TLS
from shmstream.upstreams.allowance import Left
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.pace import Pace, Quota
from shmstream.upstreams.questions import Bounds

_MOST = 256  # upstreams of patterns that are kept
_HOST = re.compile(
    r"(?:localhost|[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+)(?::\d{1,5})?"
)


class Upstreams:
    """All upstreams of a registry. Any thread may use it."""

    def __init__(
        self,
        settings: Settings,
        reached: Notes,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        """`reached`: where all workers note whether upstreams answer.

        `tell` is called with the label of an upstream, and the outcome of a question to it.
        """
        self._tell = tell
        self._settings = settings
        self._reached = reached
        self.pass_on: bool = any(each.credentials is not None for each in settings.upstreams)
        """Whether an upstream is asked with the credentials of clients."""
        self._client_key = reached.secret() if self.pass_on else None
        is_limited = any(each.max_rate or each.max_pulls for each in settings.upstreams)
        self._rates = reached.beside("rates") if is_limited else None
        named = [each for each in settings.upstreams if not each.is_pattern]
        self._fixed = [self._made(each, each.namespace) for each in named]
        self._by_name = _by_namespace(self._fixed)
        patterns = [each for each in settings.upstreams if each.is_pattern]
        self._patterns = sorted(patterns, key=lambda each: -len(each.namespace or ""))
        self._lock = threading.Lock()  # guards all below
        self._met: dict[str, Upstream] = {}

    def __iter__(self) -> Iterator[Upstream]:
        """Each URL of each upstream, as far as clients have asked for those of patterns."""
        with self._lock:
            met = list(self._met.values())
        for each in (*self._fixed, *met):
            yield each
            yield from each.others

    @property
    def told(self) -> list[Upstream]:
        """Each URL that operators are told of: clients may name any number of other hosts."""
        return [each for each in self if not each.is_guarded]

    def are_well(self) -> dict[str, bool]:
        """By label, whether the last question was answered, as all workers have seen it.

        If an upstream has several URLs, one that answers is enough. Reads files.
        """
        found: dict[str, bool] = {}
        for each in self.told:
            if not each.is_other:
                is_well = any(url.reach.problem is None for url in (each, *each.others))
                found[each.title] = found.get(each.title, True) and is_well
        return found

    def left(self) -> dict[str, Left]:
        """By label, how many more manifests an upstream gives, as it has told any worker.

        If an upstream has several URLs, the URL with the fewest left counts. Reads files.
        """
        found: dict[str, Left] = {}
        for each in self.told:
            left = each.allowance.left
            if left is not None and left.count <= found.get(each.title, left).count:
                found[each.title] = left
        return found

    @property
    def only_one(self) -> Upstream | None:
        """The upstream for the credentials of clients; None if there may be several."""
        found = [each for each in self._fixed if each.passes_on]
        is_fixed = not any(each.credentials is not None for each in self._patterns)
        return found[0] if len(found) == 1 and is_fixed else None

    def get(self, namespace: str | None) -> Upstream | None:
        """The upstream of a namespace; None for the upstream without one."""
        if (found := self._by_name.get(namespace)) is not None or namespace is None:
            return found
        if len(namespace) > 255 or not _is_host(namespace):
            return None
        namespace = canonical(namespace)
        if (found := self._by_name.get(namespace)) is not None:
            return found
        pattern = next((each for each in self._patterns if each.fits(namespace)), None)
        return None if pattern is None else self._met_by(pattern, namespace)

    def _met_by(self, pattern: configured.Upstream, namespace: str) -> Upstream:
        """The upstream of a pattern, or the fixed one that is the same server."""
        with self._lock:
            upstream = self._met.pop(namespace, None) or self._made(pattern, namespace)
            fixed = self._same_server(upstream) if pattern.is_open else None
            if fixed is not None:
                return fixed
            self._met[namespace] = upstream  # at the end: the one that was asked for last
            while len(self._met) > _MOST:
                del self._met[next(iter(self._met))]
        return upstream

    def _same_server(self, met: Upstream) -> Upstream | None:
        """The fixed upstream of which a URL is at the same server as one of these."""
        mine = {place for each in (met, *met.others) for place in (each.host, each.address)}
        for fixed in self._fixed:
            if any(not mine.isdisjoint((at.host, at.address)) for at in (fixed, *fixed.others)):
                return fixed
        return None

    def _made(self, told: configured.Upstream, namespace: str | None) -> Upstream:
        """What asks the upstream that is configured so, at all of its URLs."""
        addresses = told.addresses(namespace)
        others = [self._at(told, namespace, each) for each in addresses[1:]]
        return self._at(told, namespace, addresses[0], tuple(others))

    def _pace(self, told: configured.Upstream) -> Pace | None:
        """For all URLs of it together, and for all workers."""
        if told.max_rate is None or self._rates is None:
            return None
        return Pace(self._rates, told.namespace or "", told.max_rate)

    def _quota(self, told: configured.Upstream) -> Callable[[str], Quota] | None:
        """By rights, because registries count by account."""
        if told.max_pulls is None or self._rates is None:
            return None
        rates, (count, seconds), name = self._rates, told.max_pulls, told.namespace or ""
        return lambda rights: Quota(rates, (name, rights), count, seconds)

    def _at(
        self,
        told: configured.Upstream,
        namespace: str | None,
        address: configured.Address,
        others: tuple[Upstream, ...] | None = None,
    ) -> Upstream:
        usual = self._settings
        bounds = Bounds(
            told.first_byte or usual.first_byte,
            told.silence or usual.silence,
            told.question or usual.question,
            told.connect,
        )
        own: list[object] = [told.anonymous, told.docker_config, told.certfile]
        own += [] if told.credentials is None else [told.credentials]
        return Upstream(
            address.url,
            namespace,
            told.docker_config or usual.docker_config,
            bounds,
            self._reached,
            prefix=address.prefix,
            tls=TLS(told.cafile, told.certfile, told.keyfile, told.insecure),
            is_anonymous=told.anonymous,
            max_downloads=told.max_downloads,
            connections=told.connections or usual.connections or 1,
            is_guarded=told.is_open,
            title=label_of(told),
            room=told.namespace if told.is_pattern else None,
            own_rights=json.dumps(own) if any(own) else "",
            allow=told.allow,
            tell=None if self._tell is None else partial(self._tell, label_of(told)),
            others=others or (),
            is_other=others is None,
            pace=self._pace(told),
            quota=self._quota(told),
            client_key=None if told.credentials is None else self._client_key,
        )


def _is_host(namespace: str) -> bool:
    """Whether a namespace is a host, perhaps with a port."""
    port = namespace.partition(":")[2]
    return _HOST.fullmatch(namespace) is not None and 0 < int(port or 443) <= 65535


def label_of(told: configured.Upstream) -> str:
    """How metrics name an upstream: by its namespace, a pattern as it is; else by its host."""
    return told.namespace or urlsplit(told.url).netloc


def check(settings: Settings) -> None:
    """Check that the files that the settings name for upstreams can be used.

    Raises:
        BadSetting: a file cannot be used.
    """
    if found := list(_mistakes(settings)):
        raise BadSettings(found)


def _mistakes(settings: Settings) -> Iterator[BadSetting]:
    """Each file that cannot be used."""
    names = [each.namespace for each in settings.upstreams]
    try:
        credentials.check(names, settings.docker_config, os.environ)
    except credentials.CredentialsError as error:
        yield BadSetting("docker_config", str(error))
    for number, each in enumerate(settings.upstreams, 1):
        try:
            credentials.check((), each.docker_config, {})
        except credentials.CredentialsError as error:
            yield BadSetting(f"upstream {number}, docker_config", str(error))
        for key, files in (("cafile", [each.cafile]), ("certfile", [each.certfile, each.keyfile])):
            if (reason := _unusable(key, *files)) is not None:
                yield BadSetting(f"upstream {number}, {key}", reason)


def _unusable(key: str, file: str | None, keyfile: str | None = None) -> str | None:
    """Why a file for TLS cannot be used; None if it can."""
    tls = TLS(cafile=file) if key == "cafile" else TLS(certfile=file, keyfile=keyfile)
    try:
        if file is not None:
            tls.context()
    except OSError as error:  # ssl.SSLError is one
        files = " or ".join(filter(None, [file, keyfile]))
        return f"{files} cannot be used: {error.strerror or error}"
    return None


def _by_namespace(upstreams: list[Upstream]) -> dict[str | None, Upstream]:
    """The upstreams by namespace; an upstream without a namespace also by its own host."""
    found: dict[str | None, Upstream] = {}
    for each in upstreams:
        if each.namespace is None:
            found[each.host] = each
            if each.is_hub:
                found["docker.io"] = each
    named = {each.namespace: each for each in upstreams}
    usual = {canonical(name): each for name, each in named.items() if name is not None}
    return found | usual | named
