"""The command line: `shmstream demo`, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

import shmstream
from shmstream.demo import fanout, text
from shmstream.demo.parent import DemoFailed, Stopped, stoppable

_MIB = 1 << 20
_WITH_TEXT = ("delay", "output")
_WITHOUT_TEXT = ("input_", "rate", "readers")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shmstream.__version__, message="%(prog)s %(version)s")
def command() -> None:
    """Pull a blob once, and stream it to every process on the host while it is still arriving."""


def _number(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse the one float that is outside of no range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter(f"{value} is not a number.", ctx, param)
    return value


def _some_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not (value.is_file() and value.stat().st_size):
        raise click.BadParameter(f"{str(value)!r} is not a file with bytes in it.", ctx, param)
    return value


@command.command()
@click.option("--text", "as_text", is_flag=True, help="The concept program: 104 bytes, slowly.")
@click.option(
    "--delay",
    type=click.FloatRange(0, 60),
    callback=_number,
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="With --text: from one tick of the source to the next.",
)
@click.option(
    "--output",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="With --text: where client1.txt is written.  [default: this folder]",
)
@click.option(
    "--input",
    "input_",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_some_file,
    metavar="FILE",
    help="The blob.  [default: a tar of at least 32 MiB, made of this Python's own library]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1 << 20),
    callback=_number,
    metavar="MIB",
    help="MiB a second that the source gives; 0 for no limit.  [default: done in 5 seconds]",
)
@click.option(
    "--readers",
    type=click.IntRange(1, 100),
    default=4,
    show_default=True,
    help="How many; of two or more, one is killed in the middle.",
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
) -> None:
    """Watch one writer, and readers in interpreters of their own.

    They join while the blob is still arriving; one is killed with SIGKILL in the middle; every
    survivor's SHA-256 is checked. Exits with 0 only if everything was as it should be.
    """
    for name in _WITHOUT_TEXT if as_text else _WITH_TEXT:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            has = "does not go with" if as_text else "goes with"
            raise click.UsageError(f"--{name.rstrip('_')} {has} --text.", ctx)
    console = Console(highlight=False, emoji=False)
    try:
        with stoppable():
            if as_text:
                good = text.run(console, output, delay)
            else:
                bytes_a_second = None if rate is None else rate * _MIB
                good = fanout.run(console, input_, bytes_a_second, readers)
    except Stopped as stop:
        click.echo("Stopped: the readers were ended, and what they shared was removed.", err=True)
        ctx.exit(128 + stop.number)
    except BrokenPipeError:  # nobody looks any more, which click knows how to treat
        raise
    except (DemoFailed, shmstream.ShmstreamError, OSError) as error:
        raise click.ClickException(str(error)) from error
    ctx.exit(0 if good else 1)
