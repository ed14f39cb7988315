"""`completion`: the script with which a shell completes our commands; click makes the script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from shmstream.cli.exits import Command


@click.command(cls=Command, short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    To install it permanently:
      bash   echo 'eval "$(shmstream completion bash)"' >> ~/.bashrc
      zsh    echo 'eval "$(shmstream completion zsh)"' >> ~/.zshrc
             (below the line with compinit)
      fish   shmstream completion fish > ~/.config/fish/completions/shmstream.fish

    Then start a new shell.
    """  # noqa: D301  click wants the real character
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "shmstream", "_SHMSTREAM_COMPLETE").source())
