"""The application of one worker: the registry is at /v2/, mirrors have paths, operations the rest.

At the end of the lifespan the flights that this process leads are handed over to other processes:
later there may be no time for it, because a server may end the process by a signal.
"""

from __future__ import annotations

from shmstream.asgi.messages import Receive, Scope, Send
from shmstream.errors import OutOfResources
from shmstream.mirror.kind import say
from shmstream.mirror.mirrors import Mirrors
from shmstream.registry.api.access import Access
from shmstream.registry.api.distribution import Registry
from shmstream.registry.api.errors import Refusal
from shmstream.registry.housekeeping import Housekeeper
from shmstream.registry.ops.access_log import AccessLog
from shmstream.registry.ops.admin import Operations
from shmstream.registry.ops.catalogue import NAMES, PATH, Catalogue
from shmstream.registry.ops.metrics import new_metrics
from shmstream.registry.ops.middleware import App, Observer
from shmstream.registry.ops.names import Names
from shmstream.registry.ops.status import Status
from shmstream.registry.settings import Settings
from shmstream.sources.retries import Retries
from shmstream.store import Store
from shmstream.system import process
from shmstream.system.threads import in_thread
from shmstream.upstreams.notes import Notes
from shmstream.upstreams.questions import Bounds

_PUBLISH_BYTES = 4 << 20
_PUBLISH_INTERVAL = 0.2  # s; each publishing wakes every client at the tail
_CLOSER = ("shmstream-close", 1)  # a thread of its own: an upstream may keep others busy


class Application:
    """An ASGI application. One for each process."""

    def __init__(self, settings: Settings) -> None:
        """Raises:
        StoreUnusable: the folder cannot hold a store, or its node cannot listen for the cluster.
        BadSetting: a file that the settings of the cluster name cannot be used.
        """
        metrics = new_metrics()
        self._access = Access.of(settings)
        store = Store(
            settings.store,
            max_bytes=settings.max_bytes,
            max_flights=settings.max_flights,
            max_pass_through=settings.max_pass_through,
            shared_group=settings.shared_group,
            connections=settings.connections,
            hash_named=settings.hash_named,
            retries=Retries(
                least_rate=settings.min_rate, outage=settings.outage, on_retry=metrics.retried
            ),
            publish_bytes=_PUBLISH_BYTES,
            publish_interval=_PUBLISH_INTERVAL,
            cluster=None if settings.cluster is None else settings.cluster.make(),
            on_event=metrics.flew,
        )
        self.registry: Registry = Registry(settings, store, self._access, metrics)
        self._housekeeper = Housekeeper(settings, store, metrics)
        self._catalogue = None
        if settings.admins and self._access is not None:
            self._catalogue = Catalogue(settings, store, self._access, metrics)
        self.mirrors: Mirrors = Mirrors(
            settings.mirrors,
            store,
            Bounds(settings.first_byte, settings.silence, settings.question),
            stall=settings.stall,
            most=settings.max_pass_through,
            counts=metrics,
        )
        names = Names(Notes(store.folder, "names"), self.registry.hides)
        self.operations: Operations = Operations(
            Status(
                settings,
                store,
                metrics,
                names.of,
                self._upstreams_that_are_well,
                self.registry.left,
            ),
            metrics,
            self._problems,
            self._access,
        )
        self._metrics = metrics
        self._log = AccessLog(metrics.lost) if settings.access_log else None
        self._observer = Observer(metrics, names, self._log)

    def _problems(self) -> list[str]:
        """The known problems of upstreams, and of what is mirrored. Reads files."""
        return self.registry.problems() + self.mirrors.problems()

    def _upstreams_that_are_well(self) -> dict[str, bool]:
        """By label, whether an upstream answers, or what is mirrored. Reads files."""
        return self.registry.upstreams_that_are_well() | self.mirrors.origins_that_are_well()

    def stop(self) -> None:
        """The server is about to stop: end the responses that have no end. Idempotent."""
        self._observer.is_stopping = True
        self._housekeeper.stop()
        self.operations.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "http":
            path = scope["path"]
            is_for_registry = path == "/v2" or path.startswith("/v2/")
            app: App = self.operations
            if self._catalogue is not None and (path == NAMES or path.startswith(PATH)):
                app = self._serve_admins
            elif is_for_registry:
                app = self._serve_registry
            elif self.mirrors.find(path) is not None:
                app = self._serve_mirror
            await self._observer.observe(app, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise ValueError(f"this application speaks HTTP only, not {scope['type']}")

    async def _serve_admins(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        assert self._catalogue is not None
        scope["shmstream.route"] = "admin"
        await self._catalogue(scope, send)

    async def _serve_registry(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._metrics.clients.track_inprogress():
            await self.registry(scope, receive, send)

    async def _serve_mirror(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._access is not None:
            try:
                await self._access.keep_ours(scope)
            except Refusal as refusal:
                await say(send, refusal.status, refusal.message, refusal.headers)
                return
        with self._metrics.clients.track_inprogress():
            await self.mirrors(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        self._metrics.started()
        self._housekeeper.start()
        self.operations.start()
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.stop()
        self.registry.close()
        self.mirrors.close()
        self.operations.close()
        if self._catalogue is not None:
            self._catalogue.close()
        if self._access is not None:
            self._access.close()
        try:
            await in_thread(process.close_all, _CLOSER)
        except OutOfResources:  # no thread can be started; and nothing else is served any more
            process.close_all()
        if self._log is not None:
            await self._log.close()
        await send({"type": "lifespan.shutdown.complete"})
