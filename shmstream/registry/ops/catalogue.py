"""`Catalogue`: what admins see and do with images, over HTTP. Only for the names in `admins`.

GET /admin/images            all images that are here, as JSON
GET /admin/images/NAME       those of one name: `docker.io/library/debian:12`, or without a tag
POST /admin/images/NAME      pull it; the answer comes when it is here
DELETE /admin/images/NAME    remove it, with what no other image needs
GET /v2/_catalog             the names alone, as the specification of Docker has it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from shmstream.asgi.messages import Scope, Send, answer
from shmstream.errors import ShmstreamError
from shmstream.registry.api.access import Access, who_are_you
from shmstream.registry.api.errors import Code, Refusal, because
from shmstream.registry.images import Image, Images
from shmstream.registry.pulling import Puller
from shmstream.registry.references import Reference
from shmstream.registry.settings import Settings
from shmstream.store import Store
from shmstream.upstreams.counts import Counts
from shmstream.upstreams.singleflight import Together

PATH = "/admin/images"
"""Where images are."""
NAMES = "/v2/_catalog"
"""Where only their names are."""

_THREADS = 4


class Catalogue:
    """An ASGI application for admins. For one event loop."""

    def __init__(
        self, settings: Settings, store: Store, access: Access, counts: Counts | None = None
    ) -> None:
        """Raises `OSError`: the store's folder cannot be written to."""
        self._admins = frozenset(settings.admins)
        self._platforms = settings.preload_platforms
        self._access = access
        self._images = Images(store)
        self._make_puller = partial(Puller, settings, store, counts)
        self._worker = Together("shmstream-admin", _THREADS)

    def close(self) -> None:
        """Cancel all waiting. Idempotent."""
        self._worker.close()

    async def __call__(self, scope: Scope, send: Send) -> None:
        """Answer one request."""
        method = scope["method"]
        try:
            scope["shmstream.user"] = name = await self._access.name_of(scope)
            if name is None:
                raise who_are_you()
            if name not in self._admins:
                raise Refusal(403, Code.DENIED, "you are no admin of this cache")
            status, told = await self._worker.ask(object(), self._task(method, scope["path"]))
        except ShmstreamError as error:
            refusal = because(error, Code.NAME_UNKNOWN)
            status, headers, body = refusal.status, dict(refusal.headers), refusal.body()
        else:
            headers, body = {}, json.dumps(told).encode() + b"\n"
        headers = {"content-type": "application/json", "cache-control": "no-store", **headers}
        await answer(send, status, headers, body, is_head=method == "HEAD")

    def _task(self, method: str, path: str) -> Callable[[], tuple[int, dict[str, Any]]]:
        """What is to be done, in a thread.

        Raises:
            Refusal: there is nothing of that kind.
        """
        name = unquote(path.removeprefix(PATH).strip("/"))
        if name:
            try:
                Reference.parse(name)
            except ValueError as error:
                raise Refusal(400, Code.NAME_INVALID, str(error)) from error
        acts = {"GET": self._list, "HEAD": self._list, "DELETE": self._remove, "POST": self._pull}
        if path == NAMES and method in ("GET", "HEAD"):
            return self._names
        act = acts.get(method)
        if path == NAMES or act is None or (method in ("DELETE", "POST") and not name):
            message = "there is GET, and with a name POST and DELETE"
            raise Refusal(405, Code.UNSUPPORTED, message, headers={"allow": "GET, POST, DELETE"})
        return partial(act, name)

    def _names(self) -> tuple[int, dict[str, Any]]:
        return 200, {"repositories": sorted({each.name for each in self._images.all()})}

    def _found(self, name: str) -> list[Image]:
        """Raises `Refusal`: there is none of that name."""
        found = self._images.matching(name) if name else self._images.all()
        if name and not found:
            raise Refusal(404, Code.NAME_UNKNOWN, f"{name[:300]} is not here")
        return found

    def _list(self, name: str) -> tuple[int, dict[str, Any]]:
        return 200, {"images": [self._facts(each) for each in self._found(name)]}

    def _facts(self, image: Image) -> dict[str, Any]:
        blobs, size = self._images.size_of(image)
        return {
            "image": str(image), "digest": image.digest, "blobs": blobs, "size": size,
            "since": image.since, "last_used": image.used,
        }  # fmt: skip

    def _remove(self, name: str) -> tuple[int, dict[str, Any]]:
        found = self._found(name)
        removed = self._images.remove(found)
        return 200, {"removed": [str(each) for each in found], "blobs": removed}

    def _pull(self, name: str) -> tuple[int, dict[str, Any]]:
        try:
            pulled = self._make_puller().pull(name, self._platforms)
        except ValueError as error:
            raise Refusal(400, Code.MANIFEST_INVALID, str(error)) from error
        return 200, vars(pulled)
