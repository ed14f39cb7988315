"""The command line: `command` is its door, and each command is a room.

fetch          `fetch`
progress       its progress bar
output         where its bytes go
serve          `serve`
maintenance    `ls`, `check`, `gc`, `evict`
top            `top`
demo           `demo`
completion     `completion`
options        what several commands take: sizes, durations, `--store`, `--verbose`
formatting     how blobs and flights are shown, to people and as JSON
exits          how every command ends: exit codes, errors, signals

Results go to standard output, everything that is for people to standard error.
"""

from __future__ import annotations

import click

import shmstream
from shmstream.cli.completion import completion
from shmstream.cli.demo import demo
from shmstream.cli.fetch import fetch
from shmstream.cli.maintenance import check, evict, gc, ls
from shmstream.cli.options import verbose_option
from shmstream.cli.serve import serve
from shmstream.cli.top import top

_EPILOG = """\
Exit codes: 0 good, 1 failed, 2 wrong usage, 130 ended by Ctrl-C, 143 by SIGTERM. The environment
variable SHMSTREAM_STORE names the store to use, else it is ~/.cache/shmstream.
"""


class _InOrder(click.Group):
    """Lists its commands as they were added: the one that everybody wants comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(shmstream.__version__, message="%(prog)s %(version)s")
@verbose_option
def command() -> None:
    """Pull a blob once, and stream it to every process on the host while it is still arriving."""


for _each in (fetch, serve, ls, top, check, gc, evict, demo, completion):
    command.add_command(_each)

__all__ = ["command"]
