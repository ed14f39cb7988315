"""Where `fetch` writes the bytes: standard output, or a file that is complete or does not appear.

The bytes go to a temporary file beside the requested file; it is renamed at the end. A device or a
FIFO, such as `/dev/null`, is opened and written to directly.
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
    """A descriptor to write to. An error inside leaves no new file, and an old file unchanged.

    Raises:
        ClickException: `out` cannot be written to.
    """
    if out == STANDARD_OUTPUT:
        if sys.stdout is None:  # then another file may have descriptor 1
            raise click.ClickException("there is no standard output to write to: it is closed")
        yield 1
        return
    path = os.path.realpath(out)  # write where a symbolic link leads, as other tools do
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
    """A descriptor of a new file; `mode` is the mode of the old file, 0 if there is no old file."""
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
    except BaseException:  # also at Ctrl-C
        os.unlink(temporary)
        raise


@contextmanager
def writing_to(out: str) -> Iterator[None]:
    """Inside, a system error becomes an error about `out`, not about the temporary file.

    Raises:
        ClickException: there was a system error.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads the output: `exits` handles this
        raise
    except OSError as error:
        name = "standard output" if out == STANDARD_OUTPUT else repr(out)
        told = reason(OSError(error.errno, error.strerror))
        raise click.ClickException(f"cannot write to {name}: {told}") from error
