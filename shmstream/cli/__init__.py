"""The command line: `command` is the group of all commands, and each command has its module.

fetch          `fetch`
progress       shows how far a fetch is
output         opens what a fetch writes to
serve          `serve`
pull           `pull`
hosts          `hosts`
ls             `ls`
keys           `rm`, `pin`, `unpin`, `cancel`: what is done to the blob of one key
maintenance    `check`, `gc`, `evict`
top            `top`
cluster        `cluster`
demo           `demo`
completion     `completion`
options        options of several commands, and the parsers of sizes, durations and digests
formatting     facts as text for people
facts          blobs and flights as JSON
printing       prints results and messages
exits          how every command ends: exit codes, errors, signals

Results go to standard output, messages for people go to standard error.
"""

from __future__ import annotations

import click

import shmstream
from shmstream.cli.cluster import cluster
from shmstream.cli.completion import completion
from shmstream.cli.demo import demo
from shmstream.cli.fetch import fetch
from shmstream.cli.hosts import hosts
from shmstream.cli.keys import cancel, pin, rm, unpin
from shmstream.cli.ls import ls
from shmstream.cli.maintenance import check, evict, gc
from shmstream.cli.options import name_by_environment, verbose_option
from shmstream.cli.pull import pull
from shmstream.cli.serve import serve
from shmstream.cli.top import top

_EPILOG = """\
Exit codes: 0 success, 1 failure, 2 wrong usage, 130 ended by Ctrl-C, 143 ended by SIGTERM. The
environment variable SHMSTREAM_STORE names the folder of the store; without it, the store is in
~/.cache/shmstream. Each option has a variable: SHMSTREAM_SERVE_LISTEN is --listen of serve;
SHMSTREAM_MAX_BYTES and SHMSTREAM_SHARED_GROUP are for all commands.
"""


class _InOrder(click.Group):
    """Lists its commands in the order in which they were added: `fetch` comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(shmstream.__version__, message="%(prog)s %(version)s")
@verbose_option
def command() -> None:
    """Pull a blob once, and stream it to every process on the host while it is still arriving."""


for _each in (
    fetch, serve, pull, hosts, ls, top, cluster, rm, pin, unpin, cancel, check, gc, evict,
    demo, completion,
):  # fmt: skip
    name_by_environment(_each)
    command.add_command(_each)

__all__ = ["command"]
