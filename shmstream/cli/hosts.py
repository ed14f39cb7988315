"""`hosts`: has containerd, podman and Docker pull through a registry of ours, or no longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from shmstream.cli.exits import Command
from shmstream.cli.options import Line
from shmstream.cli.printing import say
from shmstream.registry import client_config
from shmstream.registry.client_config import Cache, ForeignFile
from shmstream.registry.tables import BadSetting, Upstream
from shmstream.registry.upstream.credentials import is_hub


@click.command(cls=Command, short_help="Have containerd, podman or Docker pull through a registry.")
@click.option(
    "--containerd",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="The config_path of containerd: /etc/containerd/certs.d.",
)
@click.option(
    "--podman",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="/etc/containers/registries.conf.d, for podman, skopeo, buildah and CRI-O.",
)
@click.option(
    "--docker",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="/etc/docker/daemon.json; Docker has mirrors of Docker Hub only.",
)
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    type=Line(),
    required=True,
    metavar="NAMESPACE[=URL]",
    help="A registry to pull from through ours: docker.io, or name=URL; * is for all that have no "
    "entry of their own. Can be given several times.",
)
@click.option(
    "--cache",
    default="http://127.0.0.1:5000",
    metavar="URL",
    help="Where clients reach our registry.  [default: http://127.0.0.1:5000]",
)
@click.option("--remove", is_flag=True, help="Remove what this command has written.")
@click.pass_context
def hosts(
    ctx: click.Context,
    containerd: str | None,
    podman: str | None,
    docker: str | None,
    upstreams: Sequence[str],
    cache: str,
    remove: bool,
) -> None:
    """Have containerd, podman or Docker pull through a registry, and from elsewhere if it fails.

    Prints each file that has changed; a second time, none. A file of somebody else is left alone:
    then it exits with 1. containerd and podman need no restart; dockerd does.

    \b
    Examples:
      shmstream hosts --containerd /etc/containerd/certs.d \\
          --upstream docker.io --upstream ghcr.io
      shmstream hosts --podman /etc/containers/registries.conf.d --upstream docker.io
      shmstream hosts --docker /etc/docker/daemon.json --upstream docker.io --remove
    """  # noqa: D301  click wants the real character
    if containerd is None and podman is None and docker is None:
        raise click.UsageError("one of --containerd, --podman and --docker is needed.", ctx)
    try:
        Upstream(None, cache)
        what = Cache(cache, tuple(map(_upstream, upstreams)))
    except BadSetting as error:
        raise click.UsageError(f"{error.reason}.", ctx) from error
    if docker is not None and not any(is_hub(each.namespace or "") for each in what.upstreams):
        reason = "Docker has mirrors of Docker Hub only: give --upstream docker.io, too."
        raise click.UsageError(reason, ctx)
    changed, failed = [], False
    for write, place in (
        (client_config.containerd, containerd),
        (client_config.podman, podman),
        (client_config.docker, docker),
    ):
        try:
            if place is not None:
                changed += write(Path(place), what, remove=remove)
        except ForeignFile as error:
            say(str(error))
            failed = True
    for path in changed:
        click.echo(str(path))
    ctx.exit(1 if failed else 0)


def _upstream(text: str) -> Upstream:
    """Raises `BadSetting`: it is no namespace, and no NAMESPACE=URL."""
    if "://" in text:
        return Upstream.parse(text)
    return Upstream(
        text.strip(), "https://{namespace}" if "*" in text else f"https://{text.strip()}"
    )
