"""How every command ends: its exit code, its error message, and what a signal does to it.

what happens                      exit code
the command succeeds              0
it fails                          1, and it prints `Error: ` and the text of the error
its arguments are wrong           2, set by click
Ctrl-C, SIGTERM, SIGHUP           130, 143, 129; the `with` blocks clean up, and when the
                                  interpreter ends, a follower takes over the flight that it leads
nobody reads its output           141, without a message, as if SIGPIPE had ended it
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from shmstream.errors import ShmstreamError, escaped
from shmstream.system.signals import Stopped, stoppable


class Command(click.Command):
    """A command that ends as this module describes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
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
        # The interpreter flushes standard output when it ends: that must not fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        ctx.exit(128 + signal.SIGPIPE)
    except (ShmstreamError, ImportError) as error:
        raise click.ClickException(escaped(str(error))) from error
    except OSError as error:
        raise click.ClickException(reason(error)) from error


def reason(error: OSError) -> str:
    """The text of a system error for people: `No space left on device: '/x'`."""
    if not error.strerror:
        return str(error)
    return error.strerror + (f": {error.filename!r}" if error.filename else "")
