"""How every command ends: its exit code, its error message, and what a signal does to it.

what happens                      the exit code
it did what it was asked          0
it cannot                         1, and `Error: ` with the text of the error
it was called in a wrong way      2, which is click's
Ctrl-C, SIGTERM, SIGHUP           130, 143, 129: the `with` blocks end, and with the interpreter
                                  whatever flight it leads is handed over to a reader
nobody reads its output           141, quietly: as if SIGPIPE had ended it
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from shmstream.errors import ShmstreamError
from shmstream.system.signals import Stopped, stoppable


class Command(click.Command):
    """A command that ends as this module says."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with _ending_well(ctx):
            return super().invoke(ctx)


@contextmanager
def _ending_well(ctx: click.Context) -> Iterator[None]:
    try:
        with stoppable():
            yield
    except Stopped as stop:
        ctx.exit(128 + stop.number)
    except BrokenPipeError:
        # What is still buffered must not fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        ctx.exit(128 + signal.SIGPIPE)
    except (ShmstreamError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(reason(error)) from error


def reason(error: OSError) -> str:
    """An error of the system for people: `No space left on device: '/x'`."""
    if not error.strerror:
        return str(error)
    return error.strerror + (f": {error.filename!r}" if error.filename else "")
