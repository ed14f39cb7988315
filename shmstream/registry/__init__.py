"""The pull-through OCI registry: `shmstream serve`, or an ASGI application for a server of yours.

application     the application: which path leads where, and what happens at start and stop
settings        all settings, checked
tables          an upstream and a cluster in a file with settings; how each value is read
configuration   reads them: options, environment, TOML file; tells all mistakes at once
client_config   files of containerd, podman and Docker
references      how people write an image
pulling         brings whole images before a client asks
housekeeping    what one worker does for all: preloading, and removing old images
images          which images are here, by name, and what belongs to each
api/            what clients ask: everything under /v2/
upstream/       what an upstream is asked: repositories, tokens
ops/            what operators see: metrics, health, the status page, the access log
server/         the processes of `shmstream serve`

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
