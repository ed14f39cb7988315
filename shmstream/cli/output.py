"""Where the bytes of a fetch go: standard output, or a file that is there whole or not at all.

A file is written under a name of its own beside the one that was asked for, and renamed in the end.
What is no file, such as `/dev/null` or a FIFO, is written to as it is.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from shmstream.cli.exits import reason

STANDARD_OUTPUT = "-"


@contextmanager
def opened(out: str) -> Iterator[int]:
    """A descriptor to write the bytes to; an error inside leaves no file, and an old one as it was.

    Raises:
        ClickException: it cannot be written to.
    """
    if out == STANDARD_OUTPUT:
        if sys.stdout is None:  # then 1 is whatever was opened since
            raise click.ClickException("there is no standard output to write to: it is closed")
        yield 1
        return
    path = os.path.realpath(out)  # where a symbolic link leads, as other tools do
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = 0
    if not mode or stat.S_ISREG(mode):
        with _renamed_in_the_end(path, out, mode) as fd:
            yield fd
        return
    with writing_to(out):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _renamed_in_the_end(path: str, out: str, mode: int) -> Iterator[int]:
    """`mode` is that of the file that is there already, 0 if there is none."""
    temporary = os.path.join(os.path.dirname(path), f".shmstream-{secrets.token_hex(8)}")
    with writing_to(out):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            with writing_to(out):
                if mode:
                    os.fchmod(fd, stat.S_IMODE(mode))
            yield fd
        finally:
            os.close(fd)
        with writing_to(out):
            os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def writing_to(out: str) -> Iterator[None]:
    """Inside, what the system refuses is an error about `out`, not about some temporary name.

    Raises:
        ClickException: the system refused.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads it: see exits.py
        raise
    except OSError as error:
        name = "standard output" if out == STANDARD_OUTPUT else repr(out)
        told = reason(OSError(error.errno, error.strerror))
        raise click.ClickException(f"cannot write to {name}: {told}") from error
