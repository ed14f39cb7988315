"""`python -m shmstream` and `shmstream`: start the command line, or say which extra it needs."""

import sys


def main() -> None:
    """Run the command line. If the `cli` extra is not installed, say so and exit with 2."""
    try:
        from shmstream.cli import command
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        sys.stderr.write("the command line needs: pip install 'shmstream[cli]'\n")
        sys.exit(2)
    command(prog_name="shmstream")


if __name__ == "__main__":
    main()
