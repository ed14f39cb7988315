"""The pull-through OCI registry: `shmstream serve`, or an ASGI application for a server of yours.

settings.py      what it is told: command line, TOML file, environment
serve.py         `shmstream serve`: what is done once; workers.py starts the workers and others
                 when they die; worker.py is one; acceptor.py: who takes a connection
application.py   the application: what goes where, and what happens at start and stop
app.py           /v2/: manifests, blobs, tags, referrers
operations.py    the rest: the status page (page.html, of what status.py sees), health, metrics.py
observer.py      around both: counts responses, and writes access_log.py

    uvicorn --factory shmstream.registry:create_app        SHMSTREAM_CONFIG names a TOML file
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmstream.registry.application import Application
    from shmstream.registry.settings import Settings


def create_app(settings: Settings | None = None) -> Application:
    """The ASGI application of one worker process.

    Args:
        settings: None for what is in the environment: see `Settings.from_environment`.

    Raises:
        BadSetting: there are none, or they are not as they must be.
        StoreUnusable: the store's folder is not fit for one.
        ImportError: `pip install 'shmstream[serve]'`.
    """
    from shmstream.registry.application import Application
    from shmstream.registry.settings import Settings

    return Application(Settings.from_environment() if settings is None else settings)


__all__ = ["create_app"]
