"""`pull`: brings whole images into a store, before a client of the registry asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.core import ParameterSource

from shmstream.cli.exits import Command
from shmstream.cli.options import Line, is_shared, show_retries, store_option, verbose_option
from shmstream.cli.printing import say
from shmstream.cli.serve import upstream_table
from shmstream.errors import ShmstreamError
from shmstream.registry.settings import BadSetting, Settings
from shmstream.store import Store


@click.command(cls=Command, short_help="Pull images into the store of a registry.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    type=Line(),
    metavar="[NAMESPACE=]URL",
    help="The registry to pull from, as for `serve`.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    envvar="SHMSTREAM_SERVE_CONFIG",
    metavar="FILE",
    help="The settings of `serve`, with its upstreams and its store.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Of an image for several platforms: which one, such as linux/arm64; all for all. Can be "
    "given several times.  [default: this host's]",
)
@store_option
@verbose_option
@click.pass_context
def pull(
    ctx: click.Context,
    images: Sequence[str],
    upstreams: Sequence[str],
    config: str | None,
    platforms: Sequence[str],
    folder: str,
) -> None:
    """Pull whole images into the store of a registry, before a client asks for them.

    It needs no running registry. If one runs with the same store, both share their downloads. What
    is here already is not downloaded again. Prints the name and the digest of each image; exits
    with 1 if one of them cannot be pulled.

    \b
    Examples:
      shmstream pull --config /etc/shmstream.toml docker.io/library/debian:12
      shmstream pull --upstream ghcr.io=https://ghcr.io --platform all ghcr.io/org/app:v1
    """  # noqa: D301  click wants the real character
    settings = _settings(ctx, upstreams, config, folder)
    show_retries()
    from shmstream.registry.pulling import Puller

    failed = False
    store = Store(settings.store, max_bytes=settings.max_bytes,
                       shared_group=settings.shared_group)  # fmt: skip
    puller = Puller(settings, store)
    for image in images:
        try:
            pulled = puller.pull(image, platforms)
        except (ShmstreamError, ValueError) as error:
            say(f"{image}: {error}")
            failed = True
            continue
        click.echo(f"{pulled.image} {pulled.digest}")
        say(f"{pulled.image}: {pulled.blobs} blobs, {pulled.fetched} of them new")
    ctx.exit(1 if failed else 0)


def _settings(
    ctx: click.Context, upstreams: Sequence[str], config: str | None, folder: str
) -> Settings:
    """Raises `UsageError`: the settings are not valid."""
    is_default = ctx.get_parameter_source("folder") is ParameterSource.DEFAULT
    options: dict[str, object] = {} if is_default else {"store": folder}
    if upstreams:
        options["upstream"] = [upstream_table(ctx, each) for each in upstreams]
    if is_shared():
        options["shared_group"] = True
    try:
        return Settings.read(options, config, {"store": folder})
    except BadSetting as error:
        raise click.UsageError(error.told, ctx) from error
