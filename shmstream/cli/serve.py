"""`serve`: a pull-through registry for everybody who pulls images through this host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from shmstream.cli.exits import Command
from shmstream.cli.options import duration, size, store_option
from shmstream.cli.printing import say
from shmstream.registry.settings import BadSetting, Settings, Upstream, read_table


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    if verbose:
        os.environ["SHMSTREAM_LOG_LEVEL"] = "INFO"  # of the workers


@click.command(cls=Command, short_help="Run a pull-through registry of container images.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAMESPACE=]URL",
    help="The registry to pull from. With NAMESPACE, such as docker.io, the one for clients that "
    "ask for it (containerd does); any number of times.",
)
@store_option
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A TOML file with any of these settings; options given here go before it.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where to listen; [::1]:5000 for IPv6, :5000 for all addresses, port 0 for any free one.  "
    "[default: 127.0.0.1:5000]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Worker processes.  [default: one for each processor]",
)
@click.option(
    "--max-bytes",
    type=size,
    metavar="SIZE",
    help="Evict the least recently used blobs of the store beyond that: 100GiB.  "
    "[default: no limit]",
)
@click.option(
    "--max-flights",
    type=click.IntRange(1),
    metavar="N",
    help="Downloads at one time; more are refused for a moment (503).  [default: no limit]",
)
@click.option(
    "--max-pass-through",
    type=click.IntRange(0),
    metavar="N",
    help="Clients of one worker that get what there is no room for straight from the upstream, at "
    "one time; more are refused for a moment (503).  [default: 64]",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    metavar="N",
    help="Connections of one worker; more are answered with 503.  [default: 2048]",
)
@click.option(
    "--tag-ttl",
    type=duration,
    metavar="DURATION",
    help="For how long what a tag means is not asked again: 30s, 10m.  [default: 60s]",
)
@click.option(
    "--prefetch",
    type=click.IntRange(0),
    metavar="N",
    help="Begin to pull so many layers of a manifest as soon as it is asked for.  [default: 0]",
)
@click.option(
    "--docker-config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A Docker config.json with the credentials of upstreams.",
)
@click.option(
    "--certfile", type=click.Path(dir_okay=False), metavar="FILE", help="PEM: speak TLS, with this."
)
@click.option(
    "--keyfile",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="PEM: its key, if that is not in the same file.",
)
@click.option(
    "--grace",
    type=duration,
    metavar="DURATION",
    help="When it is stopped: how long clients may take to finish.  [default: 30s]",
)
@click.option(
    "--access-log/--no-access-log",
    default=None,
    help="One line of JSON for each response, on standard output.  [default: yes]",
)
@click.option(
    "--x-accel-redirect",
    metavar="PREFIX",
    help="Have nginx, in front, send complete blobs: its internal location for the store.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_be_verbose,
    help="Tell of each flight on standard error, not only of what is wrong.",
)
@click.pass_context
def serve(
    ctx: click.Context, /, upstreams: Sequence[str], folder: str, config: str | None, **options: Any
) -> None:
    """Run a pull-through registry: images come from an upstream once, and stream to everybody.

    However many clients pull an image at the same time, through whichever worker, each of its
    layers is downloaded once; everybody gets the bytes as they arrive, verified by their digest.
    When a worker dies in the middle, another one goes on, and its clients see a pause.

    \b
      /v2/        for docker, containerd, podman, skopeo
      /           a page that shows what is going on
      /metrics    for Prometheus; /healthz and /readyz for probes

    Ends with 0 after SIGTERM or Ctrl-C, when clients have finished or --grace is over. SIGHUP
    starts other workers in place of these, for new certificates.

    \b
    Examples:
      shmstream serve --upstream https://registry.example.com --store /var/cache/shmstream
      shmstream serve --upstream docker.io=https://registry-1.docker.io \\
          --upstream ghcr.io=https://ghcr.io --listen :5000 --max-bytes 100GiB
      shmstream serve --config /etc/shmstream.toml
    """  # noqa: D301  click wants the real character
    try:
        settings = _settings(ctx, upstreams, folder, config, options)
    except BadSetting as error:
        raise click.UsageError(f"{error}.", ctx) from error
    from shmstream.registry.server.serve import serve as run

    try:
        good = run(settings, say)
    except BadSetting as error:
        raise click.ClickException(str(error)) from error
    ctx.exit(0 if good else 1)


def _settings(
    ctx: click.Context,
    upstreams: Sequence[str],
    folder: str,
    config: str | None,
    options: dict[str, Any],
) -> Settings:
    """What the file says, and over it the options that were given.

    Raises:
        BadSetting: something is not as it must be.
    """
    table: dict[str, object] = {} if config is None else read_table(config)
    is_default = ctx.get_parameter_source("folder") is ParameterSource.DEFAULT
    if not is_default or "store" not in table:
        table["store"] = folder
    table.update((name, value) for name, value in options.items() if value is not None)
    if upstreams:
        table["upstream"] = [_upstream(each) for each in upstreams]
    try:
        return Settings.from_table(table)
    except BadSetting as error:
        name = error.key.replace("_", "-")
        is_option = error.key in options and options[error.key] is not None
        if is_option or config is None:
            raise BadSetting(f"--{name}", error.reason) from error
        raise BadSetting(error.key, error.reason, config) from error


def _upstream(text: str) -> dict[str, str]:
    """As in a file."""
    try:
        upstream = Upstream.parse(text)
    except BadSetting as error:
        raise BadSetting("--upstream", error.reason) from error
    name = {} if upstream.namespace is None else {"namespace": upstream.namespace}
    return {"url": upstream.url, **name}
