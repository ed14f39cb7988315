"""The pull-through OCI registry: `shmstream serve`, or an ASGI application for a server of yours.

settings       from the command line, a TOML file or the environment
application    the ASGI application of one worker: /v2/ to `api`, everything else to `ops`
api/           /v2/: manifests, blobs, tags, referrers
upstream/      asks the registries that images come from
ops/           the status page, health, metrics, the access log
server/        `shmstream serve`: the parent process and its workers
notes          small files that all workers share
singleflight   one question to the upstream for many clients

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
        settings: None takes them from the environment: see `Settings.from_environment`.

    Raises:
        BadSetting: the environment has no settings, or one of them is not valid.
        StoreUnusable: the folder cannot hold a store.
        ImportError: `pip install 'shmstream[serve]'`.
    """
    from shmstream.registry.application import Application
    from shmstream.registry.settings import Settings

    return Application(Settings.from_environment() if settings is None else settings)


__all__ = ["create_app"]
