"""An ASGI application for tests: /blob/<key> of a store, from the origin in the environment.

TEST_STORE is the folder of the store, or `@` and the path of a file that holds the folder of now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shmstream import Store
from shmstream.asgi.protocol import Protocol
from shmstream.asgi.response import InFlightResponse
from shmstream.sources.base import Feed
from shmstream.sources.http import HTTPSource
from tests.support.flights import make_store

if noted := os.environ.get("TEST_SENDS"):  # note each sendfile and each sched_yield

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            result = call(*args)
            with open(str(noted), "a") as notes:
                notes.write(f"{call.__name__} {result}\n")
            return result

        return noting

    os.sendfile, os.sched_yield = note(os.sendfile), note(os.sched_yield)

_opened: dict[str, Store] = {}
_store_options = json.loads(os.environ.get("TEST_STORE_OPTIONS", "{}"))
origin = os.environ["TEST_ORIGIN"]
options = json.loads(os.environ.get("TEST_OPTIONS", "{}"))

MIB = 1 << 20


def store() -> Store:
    """The store of now."""
    folder = os.environ["TEST_STORE"]
    if folder.startswith("@"):
        folder = Path(folder[1:]).read_text()
    if folder not in _opened:
        _opened.clear()
        _opened[folder] = make_store(folder, _store_options)
    return _opened[folder]


store()


class Hasty(Protocol):
    """Short bounds, so that a test can wait for them."""

    head_timeout = 0.5
    end_patience = 0.5


class ByHand(Protocol):
    """Without zero-copy, as with TLS."""

    zero_copy = False


class HastyByHand(Hasty, ByHand):
    """Both."""


class Silent:
    """A source that describes nothing without sending bytes."""

    name = "silent"

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        return HTTPSource(f"{origin}/blob").open(offset, validator)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    key = unquote(scope["raw_path"].decode().removeprefix("/blob/").partition("?")[0])
    source: Any = None if key == "absent" else f"{origin}/blob"
    if key.startswith("silent"):
        source = Silent()
    elif key == "once":
        source = iter([bytes(MIB)] * 4)
    await InFlightResponse(store(), key, source, **options)(scope, receive, send)


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    async def endpoint(request: Request) -> InFlightResponse:
        key = str(request.path_params["key"])
        source = None if key == "absent" else f"{origin}/blob"
        return InFlightResponse(store(), key, source)

    return Starlette(routes=[Route("/blob/{key:path}", endpoint)])


def compressing() -> Any:
    from starlette.middleware.gzip import GZipMiddleware

    return GZipMiddleware(starlette())


def calling() -> Any:
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response

    async def call(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    return BaseHTTPMiddleware(starlette(), dispatch=call)


def fastapi() -> Any:
    from fastapi import BackgroundTasks, FastAPI

    application = FastAPI()

    async def endpoint(key: str, tasks: BackgroundTasks, note: int = 0) -> InFlightResponse:
        if note:
            tasks.add_task(store().fetch, "served", [b"yes"])
        return InFlightResponse(store(), key, None if key == "absent" else f"{origin}/blob")

    endpoint.__annotations__["tasks"] = BackgroundTasks  # it is known only in here
    application.get("/blob/{key}", response_model=None)(endpoint)
    return application


def django() -> Any:
    """Django, with paths that the response answers before it: as docs/serving.md has it."""
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import path

    def view(_: Any) -> HttpResponse:
        return HttpResponse("Django")

    settings.configure(
        ROOT_URLCONF=(path("", view),), ALLOWED_HOSTS=["*"], SECRET_KEY="of a test", DEBUG=False
    )
    rest = get_asgi_application()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/blob/"):
            key = scope["path"].removeprefix("/blob/")
            source = None if key == "absent" else f"{origin}/blob"
            await InFlightResponse(store(), key, source)(scope, receive, send)
        else:
            await rest(scope, receive, send)

    return application


with open(os.environ["TEST_READY"], "a") as ready:
    ready.write(f"{os.getpid()}\n")
