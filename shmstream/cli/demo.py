"""`demo`: shmstream at work, where people can watch."""

from __future__ import annotations

import math
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from shmstream.cli.exits import Command
from shmstream.demo.child import DemoFailed
from shmstream.system.signals import Stopped

_MIB = 1 << 20
_WITH_TEXT = ("delay", "output")
_WITHOUT_TEXT = ("input_", "rate", "readers", "act")


def _number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN, which click's ranges accept."""
    if value is not None and math.isnan(value):
        raise click.BadParameter(f"{value} is not a number.", ctx, param)
    return value


def _some_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not (value.is_file() and value.stat().st_size):
        raise click.BadParameter(f"{str(value)!r} is not a file with bytes in it.", ctx, param)
    return value


@click.command(cls=Command, short_help="Show shmstream at work, with processes that are killed.")
@click.option(
    "--text",
    "as_text",
    is_flag=True,
    help="Show the concept program: a text of 104 bytes, which comes slowly.",
)
@click.option(
    "--delay",
    type=click.FloatRange(0, 60),
    callback=_number,
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="With --text: the time from one tick of the source to the next.",
)
@click.option(
    "--output",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="With --text: client1.txt is written to this folder.  [default: the current one]",
)
@click.option(
    "--input",
    "input_",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_some_file,
    metavar="FILE",
    help="The blob to stream.  [default: a tar of about 32 MiB, made of Python's own library]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1 << 20),
    callback=_number,
    metavar="MIB",
    help="The source gives so many MiB a second; 0 sets no limit.  [default: an act takes 5 s]",
)
@click.option(
    "--readers",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    help="The number of readers in an act. Of two or more, the first two acts kill one.",
)
@click.option(
    "--act",
    type=click.IntRange(1, 4),
    help="Show only one act: 1, readers come and go; 2, the leader is killed; 3, a registry loses "
    "a worker; 4, a cluster loses a node.  [default: all four]",
)
@click.pass_context
def demo(
    ctx: click.Context,
    as_text: bool,
    delay: float,
    output: Path,
    input_: Path | None,
    rate: float | None,
    readers: int,
    act: int | None,
) -> None:
    """Watch how one blob reaches several interpreters, while some of them are killed.

    In the first act, readers join while a writer still brings the blob, and one reader is killed
    with SIGKILL. In the second, several processes open one blob of a store at once; the process
    that downloads it is killed, and another one takes over. In the third, clients pull an image
    through a registry, and the worker that downloads it is killed; the registry's status page can
    be watched. In the fourth, three nodes of a cluster pull a blob once, and the node that pulls it
    is killed; this act needs redis-server. The demo checks the SHA-256 that every survivor has
    read, and exits with 0 only if everything was as it should be.
    """
    for name in _WITHOUT_TEXT if as_text else _WITH_TEXT:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            has = "does not go with" if as_text else "goes with"
            raise click.UsageError(f"--{name.rstrip('_')} {has} --text.", ctx)
    from shmstream.demo import acts, text

    console = Console(highlight=False, emoji=False)
    try:
        if as_text:
            good = text.run(console, output, delay)
        else:
            bytes_a_second = None if rate is None else rate * _MIB
            good = acts.run(console, input_, bytes_a_second, readers, act)
    except Stopped:
        click.echo("Stopped: the readers were ended, and what they shared was removed.", err=True)
        raise
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error
    ctx.exit(0 if good else 1)
