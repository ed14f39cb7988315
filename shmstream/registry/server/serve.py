"""`serve`: the parent process does once what its workers need.

check      the store, the files that the settings name, the address, before any worker starts
limits     as many open files as the system allows
folder     for the metrics of all workers; removes the folder of a server that was killed
run        starts the workers (`supervisor`), until a signal
tidy up    removes what the last flights left in shared memory
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace

from shmstream.registry.server.acceptor import Counts
from shmstream.registry.server.error_log import log_to_stderr
from shmstream.registry.server.keeper import Keeper
from shmstream.registry.server.supervisor import Workers
from shmstream.registry.server.worker import CONNECTIONS, WORKER
from shmstream.registry.settings import SETTINGS_VARIABLE, BadSetting, BadSettings, Settings
from shmstream.store import Store
from shmstream.system import tcp
from shmstream.system.descriptors import make_room
from shmstream.system.temporary import TemporaryFolder

_NEEDED = (
    "uvicorn", "uvloop", "httptools", "prometheus_client", "urllib3", "pydantic_settings",
    "pythonjsonlogger", "tomli_w",
)  # fmt: skip
_BACKLOG = 2048  # connections that wait to be accepted
_FOLDER = "shmstream-serve-"
_FIXED = (
    "store", "listen", "workers", "grace", "keep", "stuck_after", "max_connections", "shared_group",
)  # fmt: skip
"""Settings that the parent process uses, once."""
_OF_TLS = ("certfile", "keyfile", "client_ca")
"""Settings that stay as they are if a change would begin or end TLS, or asking for certificates."""
_OWN, _OF_WORKER = 256, 16
"""Descriptors of the parent that are no duplicates of connections that workers have: in all, and
more for each worker. At SIGHUP there are twice as many workers."""

_log = logging.getLogger("shmstream")


def serve(
    settings: Settings,
    tell: Callable[[str], None],
    module: str = WORKER,
    reread: Callable[[], Settings] | None = None,
) -> bool:
    """Serve until SIGTERM or Ctrl-C; False if workers could not start. For a process of its own.

    `tell` is called with lines for the person who started the server, unless the log is JSON: then
    they are in the log. `module` is a worker: see `Starter`. `reread` reads the settings anew at
    SIGHUP, and raises `BadSetting`.

    Raises:
        ImportError: the extra `serve` is not installed.
        StoreUnusable: the folder cannot hold a store.
        BadSetting: a file that the settings name, or the address, cannot be used.
    """
    _require_extra(settings)
    _open_standard_descriptors()
    log_to_stderr("", "INFO", as_json=settings.log_format == "json")
    if settings.log_format == "json":  # a program reads it, line by line
        tell = _log.info
    store = Store(settings.store, shared_group=settings.shared_group)
    check_files(settings)
    _raise_limits(settings)
    with ExitStack() as undo:
        undo.callback(_tidy, store)
        listener = undo.enter_context(closing(listen(settings)))
        _warn_of_strangers(settings, listener)
        folder = undo.enter_context(closing(TemporaryFolder(_FOLDER)))
        _tidy(store)
        environment = {
            **os.environ,
            SETTINGS_VARIABLE: settings.to_json(),
            "PROMETHEUS_MULTIPROC_DIR": folder.path,
        }
        workers = Workers(
            settings.workers,
            settings.grace,
            listener,
            environment,
            gone=lambda number: _forget(number, folder),
            keeper=_keeper(settings, listener),
            stuck_after=settings.stuck_after,
            module=module,
        )
        return workers.run(
            started=lambda: tell(_introduction(settings, listener, store)),
            may_renew=lambda: _may_renew(settings, reread, workers, folder),
        )


def _open_standard_descriptors() -> None:
    """If 0, 1 or 2 is closed, open it: else a socket gets that number, and workers lose it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _keeper(settings: Settings, listener: socket.socket) -> Keeper | None:
    """What keeps the connections, if that is wanted and possible."""
    if not settings.keep or settings.certfile is not None or not tcp.is_known:
        return None
    from shmstream.registry.server.accepting import most_connections

    own = _OWN + _OF_WORKER * settings.workers
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - own, 0)
    make_room()
    each = most_connections(settings)
    return Keeper(settings.workers * each, most, listener, each)


def _require_extra(settings: Settings) -> None:
    if settings.cluster is not None and importlib.util.find_spec("redis") is None:
        raise ImportError("a cluster needs: pip install 'shmstream[cluster]'", name="redis")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError("`serve` needs: pip install 'shmstream[serve]'", name=missing[0])


def check_files(settings: Settings) -> None:
    """Check that the files that the settings name can be used, and the credentials be read.

    Raises:
        BadSetting: at least one file cannot be used; all that cannot are in its `mistakes`.
    """
    from shmstream.registry.api.access import Access
    from shmstream.registry.upstream import choice

    found: list[BadSetting] = []
    for check in (choice.check, Access.of, _check_cluster, _check_certificate):
        try:
            check(settings)
        except BadSetting as error:
            found += error.mistakes
    if found:
        raise BadSettings(found)


def _check_cluster(settings: Settings) -> None:
    """Raises `BadSetting`: a file of the cluster cannot be used."""
    if settings.cluster is not None:
        settings.cluster.make()


def _check_certificate(settings: Settings) -> None:
    """Raises `BadSetting`: the certificate, or the authorities of clients, cannot be used."""
    if settings.certfile is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.certfile, settings.keyfile)
            if settings.client_ca is not None:
                _check_authorities(context, settings.client_ca)
        except ssl.SSLError as error:
            files = " and ".join(filter(None, [settings.certfile, settings.keyfile]))
            what = "no certificate and key in PEM that belong together"
            raise BadSetting("certfile", f"in {files} there are {what}: {error}") from error
        except OSError as error:
            reason = f"{settings.certfile} or its key cannot be read: {error.strerror}"
            raise BadSetting("certfile", reason) from error


def _check_authorities(context: ssl.SSLContext, path: str) -> None:
    """Raises `BadSetting`: there are no certificates of authorities in the file."""
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        reason = f"in {path} there are no certificates in PEM: {error.strerror or error}"
        raise BadSetting("client_ca", reason) from error


def _warn_of_strangers(settings: Settings, listener: socket.socket) -> None:
    """Say who can reach this registry, if these are not only programs of this host."""
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    if address.is_loopback or settings.client_ca is not None:
        return
    every = "every host of its networks"
    clients = every if address.is_unspecified else f"every client that reaches {address}"
    remedy = "see htpasswd, tokens and client_ca, or listen on 127.0.0.1"
    is_ours = {each.credentials is None for each in settings.upstreams}
    if settings.mirrors or (True in is_ours and not settings.asks_names):  # mirrors ask nobody
        _log.warning(
            "%s may pull without a password all that this cache may pull from its upstreams: %s",
            clients, remedy,
        )  # fmt: skip
    if False in is_ours and not settings.asks_names:
        _log.warning(
            "%s may pull what upstreams with the credentials of clients give to everybody, and see"
            " digests and sizes, without names, of all that their clients pull: %s",
            clients, remedy,
        )  # fmt: skip


def _may_renew(
    first: Settings,
    reread: Callable[[], Settings] | None,
    workers: Workers,
    folder: TemporaryFolder,
) -> bool:
    """Whether new workers can start; they get the settings as these are now."""
    try:
        settings = first if reread is None else _allowed(first, reread())
        check_files(settings)
        _restore(folder)
    except (BadSetting, OSError) as error:
        told = error.told if isinstance(error, BadSetting) else str(error)
        _log.error("the workers stay as they are: %s", told.replace("\n", ""))
        return False
    workers.tell(SETTINGS_VARIABLE, settings.to_json())
    return True


def _allowed(first: Settings, settings: Settings) -> Settings:
    """The new settings, but for those that the parent process itself has used."""
    names = [*_FIXED, *(_OF_TLS if _changes_trust(first, settings) else ())]
    fixed = {each: getattr(first, each) for each in names}
    changed = [each for each, value in fixed.items() if getattr(settings, each) != value]
    if changed:
        what = "a change counts when the registry is started again"
        _log.warning("%s: %s", ", ".join(changed), what)
    return replace(settings, **fixed)


def _changes_trust(first: Settings, settings: Settings) -> bool:
    """Whether connections would begin or end to be encrypted, or clients to need a certificate.

    Connections are taken, and perhaps kept, in another way then, for which it is too late.
    """
    return any(
        (getattr(first, each) is None) != (getattr(settings, each) is None)
        for each in ("certfile", "client_ca")
    )


def _raise_limits(settings: Settings) -> None:
    """Allow as many open files as the system allows: a client needs two or three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = 3 * settings.max_connections + 100
    if hard != resource.RLIM_INFINITY and hard < needed:
        _log.warning(
            "max_connections = %d may need %d open files, and the limit is %d (ulimit -Hn)",
            settings.max_connections, needed, hard,
        )  # fmt: skip


def listen(settings: Settings) -> socket.socket:
    """The listening socket. The keeper accepts the connections; without one, all workers do.

    Raises:
        BadSetting: this process cannot listen on that address.
    """
    host, port = settings.address
    try:
        if not host:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(
                ("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual
            )
        [(family, _, _, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        told = error.strerror or str(error)
        if error.errno and not isinstance(error, socket.gaierror):
            told = os.strerror(error.errno)  # without the address, which Python adds
        raise BadSetting("listen", f"cannot listen on {settings.listen}: {told}") from error


def _tidy(store: Store) -> None:
    """Remove what killed workers may have left."""
    try:
        store.gc()
    except OSError as error:
        _log.warning("%s cannot be tidied up: %s", store.folder, error)


def _introduction(settings: Settings, listener: socket.socket, store: Store) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.certfile is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    upstreams = [
        *map(str, settings.upstreams),
        *map(str, settings.mirrors),
    ]
    workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
    return f"Serving {', '.join(upstreams)} at {url} with {workers}, from {store.folder}"


def _restore(folder: TemporaryFolder) -> None:
    """Have the folder for metrics again if it was removed, so that new workers can start."""
    if folder.restore():
        _log.warning("%s was removed, and is made anew: metrics begin again", folder.path)


def _forget(number: int, folder: TemporaryFolder) -> None:
    """Remove a dead worker's gauges, and its count of connections."""
    from prometheus_client.multiprocess import mark_process_dead

    try:
        _restore(folder)
        mark_process_dead(number, folder.path)  # type: ignore[no-untyped-call]
        counts = Counts(os.path.join(folder.path, CONNECTIONS), number)
        counts.tell(None)
        counts.close()
    except OSError as error:  # the disk is full, or gone
        _log.error("a dead worker's counts cannot be removed: %s", error)
