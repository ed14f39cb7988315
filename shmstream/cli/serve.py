"""`serve`: runs a pull-through registry of container images."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from shmstream.cli.exits import Command
from shmstream.cli.options import Line, duration, is_shared, size, store_option
from shmstream.cli.printing import say
from shmstream.registry.settings import BadSetting, Settings, Upstream


def _be_verbose(ctx: click.Context, param: click.Parameter, verbose: bool) -> None:  # noqa: ARG001
    if verbose:
        os.environ["SHMSTREAM_LOG_LEVEL"] = "INFO"  # the workers read it


class _Serve(Command):
    """Gathers the values of options that are none, so that all mistakes are told at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for each in self.params:
            if isinstance(each.type, click.types.FuncParamType | click.IntRange):
                each.type = _Noting(each.type)


class _Noting(click.types.StringParamType):
    """A type whose mistakes are gathered."""

    def __init__(self, inner: click.ParamType[Any, Any]) -> None:
        self.name = inner.name
        self._inner = inner

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; None if it is none."""
        try:
            return self._inner(value, param, ctx)
        except click.BadParameter as error:
            if ctx is None:
                raise
            error.param, error.ctx = param, ctx
            ctx.meta.setdefault(_WRONG, []).append(error)
            return None


_WRONG = "shmstream.serve.wrong"


def _refuse(ctx: click.Context, error: BadSetting | None) -> None:
    """Tell all mistakes at once, if there are any: wrong options, and `error` about settings.

    Raises:
        UsageError: there is a mistake.
    """
    wrong: list[click.BadParameter] = ctx.meta.get(_WRONG, [])
    if len(wrong) == 1 and error is None:
        raise wrong[0]
    # click has told of a variable of its own: the same is not told twice.
    told = [each.format_message() for each in wrong]
    named = [each.param.envvar for each in wrong if each.param is not None]
    variables = {
        name for each in named for name in ([each] if isinstance(each, str) else each or ())
    }
    mistakes = () if error is None else error.mistakes
    told += [each.told for each in mistakes if each.key not in variables]
    if len(told) > 1:
        told = [f"{len(told)} settings are not valid:", *(f"  {each}" for each in told)]
    if told:
        raise click.UsageError("\n".join(told), ctx)


@click.command(cls=_Serve, short_help="Run a pull-through registry of container images.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="[NAMESPACE=]URL[,URL...]",
    help="The registry to pull from. With NAMESPACE, such as docker.io: the registry for clients "
    "that ask for this namespace, as containerd does; *.example.com or * for many, with "
    "{namespace} in the URL. What follows /v2/ in the URL stands before names there. Further URLs "
    "with the same images are asked where the first one fails. Or a table of TOML, with "
    'all that one in a file may have: \'{url = "https://a", cafile = "/ca.pem"}\'. Can be given '
    "several times.",
)
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    type=Line(),
    metavar="TABLE",
    help="Another server to mirror, as a table of TOML: "
    '\'{path = "/hf", kind = "huggingface", url = "https://huggingface.co"}\'. Can be given '
    "several times.",
)
@store_option
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A TOML file with any of these settings; options and the environment override it. SIGHUP "
    "reads it anew.",
)
@click.option(
    "--check",
    "only_check",
    is_flag=True,
    help="Check all settings and the files that they name, and end: 0 if the registry could start "
    "with them. Touches nothing.",
)
@click.option(
    "--print-config",
    is_flag=True,
    help="Print all settings as a TOML file, with those that nobody gave, and end.",
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
    "each upstream and mirror.  [default: 1 for an upstream; 8 for a mirror if the file has 64 MiB "
    "or more]",
)
@click.option(
    "--hash-named/--no-hash-named",
    default=None,
    help="Compute the digest of a file of a mirror that nothing verifies. Without it such a file "
    "costs less, and its download cannot be resumed after a reboot.  [default: yes]",
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
    "--preload",
    multiple=True,
    metavar="IMAGE",
    help="Pull this image before a client asks for it. Can be given several times.",
)
@click.option(
    "--preload-every",
    type=duration,
    metavar="DURATION",
    help="Pull the images of --preload again so often, because a tag may have another meaning; 0: "
    "only at the start.  [default: 0]",
)
@click.option(
    "--preload-platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="The platforms of --preload, such as linux/arm64, or all.  [default: this host's]",
)
@click.option(
    "--immutable-tags",
    multiple=True,
    metavar="PATTERN",
    help="Tags that never change their meaning, such as 'v*.*.*': it is asked once. Can be given "
    "several times.",
)
@click.option(
    "--unused-for",
    type=duration,
    metavar="DURATION",
    help="Remove images that no client has asked for in so long: 30d.  [default: never]",
)
@click.option(
    "--kept-for",
    type=duration,
    metavar="DURATION",
    help="Remove images that have been here for so long, used or not: 90d.  [default: never]",
)
@click.option(
    "--admins",
    multiple=True,
    metavar="NAME",
    help="A client that may list and remove images under /admin/, and have images pulled. Needs "
    "--htpasswd or --tokens. Can be given several times.",
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
    "--client-ca",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="A PEM file with authorities: every client has to show a certificate of one of them.",
)
@click.option(
    "--htpasswd",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Ask clients for a name and a password, which are in this file, hashed by bcrypt: "
    "`htpasswd -B`.",
)
@click.option(
    "--tokens",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Ask clients for a bearer token; each line of this file is a name and a token.",
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
    "--log-format",
    metavar="text|json",
    help="The form of the log on standard error.  [default: text]",
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
    ctx: click.Context,
    /,
    upstreams: Sequence[str],
    folder: str,
    config: str | None,
    only_check: bool,
    print_config: bool,
    **options: Any,
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
    replaces the workers by new workers, which read the settings and the certificates again. If
    these are not valid, it says so, and the old workers go on.

    \b
    Examples:
      shmstream serve --upstream https://registry.example.com --store /var/cache/shmstream
      shmstream serve --upstream docker.io=https://registry-1.docker.io \\
          --upstream ghcr.io=https://ghcr.io --listen :5000 --max-bytes 100GiB
      shmstream serve --config /etc/shmstream.toml
      shmstream serve --upstream https://registry.example.com --advertise 10.0.0.7:5001 \\
          --cluster redis://redis:6379 --cluster-secret-file /etc/cluster.key
    """  # noqa: D301  click wants the real character
    table = _table(ctx, upstreams, options)

    def read() -> Settings:
        is_default = ctx.get_parameter_source("folder") is ParameterSource.DEFAULT
        return Settings.read(table, config, {"store": folder} if is_default else {})

    try:
        settings = read()
    except BadSetting as error:
        _refuse(ctx, error)
        raise
    _refuse(ctx, None)
    from shmstream.registry.server.serve import check_files
    from shmstream.registry.server.serve import serve as run

    try:
        if print_config:
            _print(settings)
        if only_check:
            check_files(settings)
            served = map(str, (*settings.upstreams, *settings.mirrors))
            say(f"The settings are good: {', '.join(served)}")
        if print_config or only_check:
            return
        good = run(settings, say, reread=read)
    except BadSetting as error:
        from shmstream.registry import configuration

        told = configuration.placed(error.mistakes, table, config).told
        raise click.ClickException(told.removesuffix(".")) from error
    ctx.exit(0 if good else 1)


def _print(settings: Settings) -> None:
    from shmstream.registry import configuration

    click.echo(configuration.as_toml(settings, settings.upstreams), nl=False)


def _table(
    ctx: click.Context, upstreams: Sequence[str], options: dict[str, Any]
) -> dict[str, object]:
    """The options that were given, as the table that a file would have.

    Raises:
        UsageError: an upstream is none.
    """
    table: dict[str, object] = {}
    if ctx.get_parameter_source("folder") is not ParameterSource.DEFAULT:
        table["store"] = ctx.params["folder"]
    _add_cluster(table, options)
    if mirrors := options.pop("mirrors"):
        table["mirror"] = [_inline(ctx, "--mirror", each) for each in mirrors]
    table.update((name, value) for name, value in options.items() if value not in (None, ()))
    if is_shared():
        table["shared_group"] = True
    if upstreams:
        table["upstream"] = [upstream_table(ctx, each) for each in upstreams]
    return table


def _add_cluster(table: dict[str, object], options: dict[str, Any]) -> None:
    """Move the options of the cluster into the table of the cluster."""
    names = {"cluster": "url", "advertise": "advertise", "cluster_listen": "listen",
             "cluster_secret_file": "secret_file"}  # fmt: skip
    given = {names[each]: options.pop(each) for each in names}
    given = {name: value for name, value in given.items() if value is not None}
    if given:
        table["cluster"] = given


def upstream_table(ctx: click.Context, text: str) -> dict[str, object]:
    """The value of `--upstream` as the table that a file would have.

    Raises:
        UsageError: it is none.
    """
    if text.lstrip().startswith("{"):
        return _inline(ctx, "--upstream", text)
    try:
        return Upstream.parse(text).as_table()
    except BadSetting as error:
        raise click.UsageError(f"--upstream: {error.reason}.", ctx) from error


def _inline(ctx: click.Context, option: str, text: str) -> dict[str, object]:
    """The inline table of TOML in `text`.

    Raises:
        UsageError: it is none.
    """
    try:
        return dict(tomllib.loads(f"table = {text}")["table"])
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise click.UsageError(f"{option}: is no table of TOML: {error}.", ctx) from error
