"""`serve`: runs a pull-through registry of container images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from shmstream.cli.exits import Command
from shmstream.cli.options import duration, is_shared, size, store_option
from shmstream.cli.printing import say
from shmstream.registry.settings import BadSetting, Settings, Upstream, read_table


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    if verbose:
        os.environ["SHMSTREAM_LOG_LEVEL"] = "INFO"  # the workers read it


@click.command(cls=Command, short_help="Run a pull-through registry of container images.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAMESPACE=]URL[,URL...]",
    help="The registry to pull from. With NAMESPACE, such as docker.io: the registry for clients "
    "that ask for this namespace, as containerd does; *.example.com or * for many, with "
    "{namespace} in the URL. What follows /v2/ in the URL stands before names there. Further URLs "
    "with the same images are asked where the first one fails. Can be given several times.",
)
@store_option
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A TOML file with any of these settings; options on the command line override it.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where to listen; [::1]:5000 for IPv6, :5000 for all addresses, port 0 for any free "
    "port.  [default: 127.0.0.1:5000]",
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
    help="Evict the least recently used blobs when the store is larger than SIZE: 100GiB.  "
    "[default: no limit]",
)
@click.option(
    "--max-flights",
    type=click.IntRange(1),
    metavar="N",
    help="How many downloads may run at one time; further requests are answered with 503 and "
    "Retry-After.  [default: no limit]",
)
@click.option(
    "--max-pass-through",
    type=click.IntRange(0),
    metavar="N",
    help="If the store has no room for a blob, clients get it directly from the upstream: so many "
    "at one time in each worker; further requests are answered with 503 and Retry-After.  "
    "[default: 64]",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    metavar="N",
    help="How many connections one worker may have; on further ones it answers 503.  "
    "[default: 2048]",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    metavar="N",
    help="How many connections to its upstream one large blob may come over; a file can say so for "
    "each upstream.  [default: 1]",
)
@click.option(
    "--min-rate",
    type=size,
    metavar="SIZE",
    help="An upstream that gives fewer bytes of a blob a second, over 15 s, counts as stalled; 0: "
    "it may be as slow as it likes.  [default: 1KiB]",
)
@click.option(
    "--first-byte",
    type=duration,
    metavar="DURATION",
    help="How long an upstream may take to begin an answer; some gather the whole blob first.  "
    "[default: 60s]",
)
@click.option(
    "--silence",
    type=duration,
    metavar="DURATION",
    help="How long an upstream may give no byte in the middle of a blob before it is asked again.  "
    "[default: 60s]",
)
@click.option(
    "--question",
    type=duration,
    metavar="DURATION",
    help="How long a whole question to an upstream may take: a tag, a list, a token, with all "
    "tries.  [default: 60s]",
)
@click.option(
    "--outage",
    type=duration,
    metavar="DURATION",
    help="How long an upstream may be away in the middle of a blob that clients read, before they "
    "are cut; 0: a few tries.  [default: 60s]",
)
@click.option(
    "--tag-ttl",
    type=duration,
    metavar="DURATION",
    help="How long the digest of a tag is used before the upstream is asked again: 30s, 10m.  "
    "[default: 60s]",
)
@click.option(
    "--prefetch",
    type=click.IntRange(0),
    metavar="N",
    help="When a client asks for a manifest, begin to download its layers, up to N at one time in "
    "each worker.  [default: 0]",
)
@click.option(
    "--docker-config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A Docker config.json with the credentials for the upstreams.",
)
@click.option(
    "--certfile",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A PEM file with the certificate: serve TLS.",
)
@click.option(
    "--keyfile",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A PEM file with the key, if the certificate's file does not contain it.",
)
@click.option(
    "--grace",
    type=duration,
    metavar="DURATION",
    help="How long clients may take to finish when the server is stopped.  [default: 30s]",
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="When a worker ends, in whatever way, other workers go on with its connections, and no "
    "client is cut. Not with TLS, and only on Linux.  [default: yes]",
)
@click.option(
    "--stuck-after",
    type=duration,
    metavar="DURATION",
    help="Kill a worker that has made no progress for so long, so that another one replaces it; 0: "
    "never.  Only with --keep.  [default: 60s]",
)
@click.option(
    "--access-log/--no-access-log",
    default=None,
    help="Print a line of JSON for each response on standard output.  [default: yes]",
)
@click.option(
    "--x-accel-redirect",
    metavar="PREFIX",
    help="Let an nginx in front send complete blobs: its internal location for the store.",
)
@click.option(
    "--cluster",
    metavar="URL",
    help="The Redis or Valkey of a cluster of nodes, which pull each blob once together: "
    "redis://host:6379. Needs --advertise and --cluster-secret-file.",
)
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    help="Where the other nodes of the cluster reach this one.",
)
@click.option(
    "--cluster-listen",
    metavar="HOST:PORT",
    help="Where to listen for other nodes, never for clients.  [default: as --advertise]",
)
@click.option(
    "--cluster-secret-file",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A file with what all nodes of the cluster know, and nobody else: 16 bytes or more.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_be_verbose,
    help="Log each flight on standard error, not only problems.",
)
@click.pass_context
def serve(
    ctx: click.Context, /, upstreams: Sequence[str], folder: str, config: str | None, **options: Any
) -> None:
    """Run a pull-through registry: an image comes from its upstream once, and streams to all.

    However many clients pull an image at the same time, through any of the workers, each layer of
    the image is downloaded once. All clients get the bytes as they arrive, verified by the digest.
    When a worker dies in the middle, another worker goes on, and the clients see a pause.

    A [[mirror]] in the file of --config mirrors another server in the same way, below a path of its
    own: any HTTP server, the Hugging Face Hub, or a package index for pip and uv.

    \b
      /v2/        for docker, containerd, podman, skopeo
      /           a page that shows what is going on
      /metrics    for Prometheus; /healthz and /readyz for probes

    Ends with 0 after SIGTERM or Ctrl-C, when the clients have finished or --grace is over. SIGHUP
    replaces the workers by new workers, which read the certificates again.

    \b
    Examples:
      shmstream serve --upstream https://registry.example.com --store /var/cache/shmstream
      shmstream serve --upstream docker.io=https://registry-1.docker.io \\
          --upstream ghcr.io=https://ghcr.io --listen :5000 --max-bytes 100GiB
      shmstream serve --config /etc/shmstream.toml
      shmstream serve --upstream https://registry.example.com --advertise 10.0.0.7:5001 \\
          --cluster redis://redis:6379 --cluster-secret-file /etc/cluster.key
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
    """The settings in the file; an option that was given overrides its setting.

    Raises:
        BadSetting: a setting is not valid; it names the option or the file that has the setting.
    """
    table: dict[str, object] = {} if config is None else read_table(config)
    is_default = ctx.get_parameter_source("folder") is ParameterSource.DEFAULT
    if not is_default or "store" not in table:
        table["store"] = folder
    _add_cluster(table, options)
    table.update((name, value) for name, value in options.items() if value is not None)
    if is_shared():
        table["shared_group"] = True
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


def _add_cluster(table: dict[str, object], options: dict[str, Any]) -> None:
    """Move the options of the cluster into the table of the cluster."""
    names = {"cluster": "url", "advertise": "advertise", "cluster_listen": "listen",
             "cluster_secret_file": "secret_file"}  # fmt: skip
    given = {names[each]: options.pop(each) for each in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given:
        before = table.get("cluster")
        table["cluster"] = (dict(before) if isinstance(before, dict) else {}) | given


def _upstream(text: str) -> dict[str, object]:
    """The value of `--upstream` as the table that a file would have."""
    try:
        upstream = Upstream.parse(text)
    except BadSetting as error:
        raise BadSetting("--upstream", error.reason) from error
    name = {} if upstream.namespace is None else {"namespace": upstream.namespace}
    return {"url": [upstream.url, *upstream.more], **name}
