"""WSGI applications for tests: /blob/<key> of a store, as a bare application, in Flask, in Django.

They are told by the environment: TEST_STORE, TEST_ORIGIN, and TEST_OPTIONS of each response.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

from shmstream.wsgi import InFlightResponse, for_django, for_flask
from tests.support.flights import make_store

store = make_store(os.environ["TEST_STORE"], {})
origin = os.environ["TEST_ORIGIN"]
options = json.loads(os.environ.get("TEST_OPTIONS", "{}"))


def response(key: str) -> InFlightResponse:
    source = None if key in ("absent", "report") else f"{origin}/blob"
    return InFlightResponse(store, key, source, **options)


def bare(environ: Any, start_response: Any) -> Any:
    return response(environ["PATH_INFO"].removeprefix("/blob/"))(environ, start_response)


def flask() -> Any:
    from flask import Flask

    application = Flask(__name__)
    application.add_url_rule("/blob/<key>", "blob", lambda key: for_flask(response(key)))
    application.add_url_rule("/plain/<key>", "plain", response)
    return application


def django() -> Any:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    urls = [path("blob/<str:key>", lambda request, key: for_django(request, response(key)))]
    settings.configure(ROOT_URLCONF=tuple(urls), ALLOWED_HOSTS=["*"], SECRET_KEY="of a test")
    return get_wsgi_application()


def by_waitress(application: str, descriptor: int) -> None:
    """Serve `bare`, `flask()` or `django()` on a listening socket, until SIGTERM."""
    from waitress import serve

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    name = application.removesuffix("()")
    found = globals()[name]
    chosen = found if name == application else found()
    serve(chosen, sockets=[socket.socket(fileno=descriptor)], threads=8)
