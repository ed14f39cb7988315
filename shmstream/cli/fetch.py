"""`fetch`: brings a blob into the store, then writes it to a file or a pipe, or prints its path.

It is `Store.open` on the command line. When several processes on the host fetch the same key at the
same time, one of them leads and the others follow. If the leader is ended, a follower goes on.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from urllib.parse import urlsplit

import click

from shmstream.cli import output
from shmstream.cli.exits import Command
from shmstream.cli.options import Line, is_shared, show_retries, size, store_option, verbose_option
from shmstream.cli.options import digest as digest_of_text
from shmstream.cli.output import STANDARD_OUTPUT
from shmstream.cli.printing import PEOPLE
from shmstream.cli.progress import telling
from shmstream.errors import ShmstreamError
from shmstream.flight.blob import Blob
from shmstream.sources.base import Source, public
from shmstream.sources.select import as_sources
from shmstream.storage.placing import place_file
from shmstream.store import Store


@click.command(cls=Command, short_help="Get a blob; all processes on this host share one download.")
@click.argument("url")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Write the blob to FILE, completely or not at all; - streams it to standard output as it "
    "arrives.  [default: print the path of the blob in the store]",
)
@click.option(
    "--link",
    is_flag=True,
    help="With -o FILE: have FILE share the bytes of the store, by a reflink or a hard link, where "
    "the file system can. Do not write to FILE then: it may be the store's own.",
)
@click.option(
    "--digest",
    type=digest_of_text,
    metavar="DIGEST",
    help="sha256:<hex>, md5:<hex>, ...: the bytes are verified by it. It is the key of the blob, "
    "unless --key gives a name.",
)
@click.option("--key", metavar="TEXT", help="The key of the blob.  [default: DIGEST, or else URL]")
@click.option(
    "--size",
    "expected",
    type=size,
    metavar="SIZE",
    help="What the blob has, in bytes or as 10MiB: more or less is an error.",
)
@store_option
@click.option(
    "--source",
    "others",
    multiple=True,
    metavar="URL",
    help="Another URL or path of the same blob, used if URL fails; can be given several times.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    type=Line(),
    metavar="'NAME: VALUE'",
    help="A header for requests to the host of URL, and to no other host; can be given several "
    "times.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    metavar="N",
    help="How many connections the blob may come over from each source; with --digest, several "
    "sources are used at once.  [default: 8 for http, https and object stores if the blob has 64 "
    "MiB or more, else 1]",
)
@click.option(
    "--hash-named/--no-hash-named",
    default=True,
    help="Without --digest: compute the digest of the blob all the same, so that its download can "
    "be resumed after a reboot.  [default: yes]",
)
@click.option(
    "--max-bytes",
    type=size,
    metavar="SIZE",
    help="Evict the least recently used blobs when the store is larger than SIZE: 10GiB, 500MB.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@verbose_option
def fetch(
    url: str,
    out: str | None,
    link: bool,
    digest: str | None,
    key: str | None,
    expected: int | None,
    folder: str,
    others: Sequence[str],
    headers: Sequence[str],
    connections: int | None,
    hash_named: bool,
    max_bytes: int | None,
    quiet: bool,
) -> None:
    """Get a blob: from the store, from a download in progress on this host, or else from URL.

    URL is an http or https URL, a URL that fsspec knows (s3://, gs://, ...), or a path. However
    many processes on this host fetch the same blob, one of them downloads it. The others read it
    while it arrives. If the process that downloads is ended, one of the others goes on.

    Without --digest, a blob that is stored under URL is never downloaded again. To get it anew,
    `evict` it or give another --key.

    \b
    Examples:
      shmstream fetch https://host/model.bin --digest sha256:9f86d0... -o model.bin
      shmstream fetch https://host/data.tar -o - | tar x
      path=$(shmstream fetch -q https://host/data.tar --source https://mirror/data.tar)
    """  # noqa: D301  click wants the real character
    name = key or digest or key_of(url)
    if link and out in (None, STANDARD_OUTPUT):
        raise click.UsageError("--link goes with -o FILE.")
    try:
        sources = _sources([url, *others], _parsed(headers))
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    if not quiet:
        show_retries()
    store = Store(
        folder,
        max_bytes=max_bytes,
        shared_group=is_shared(),
        connections=connections,
        hash_named=hash_named,
    )
    with ExitStack() as stack:
        target = None if out is None or link else stack.enter_context(output.opened(out))
        blob = stack.enter_context(_opened(store, name, sources, digest, expected))
        shares_terminal = out == STANDARD_OUTPUT and sys.stdout.isatty()
        bar = PEOPLE.is_terminal and PEOPLE.is_interactive and not shares_terminal
        shown = public(name) if name == key_of(url) else name
        with telling(blob, shown, copying=target is not None, bar=bar, quiet=quiet):
            if out is not None and target is not None:
                with output.writing_to(out):
                    blob.copy(target)
            blob.wait()  # also after a copy: if we lead, the leader's thread still has to clean up
        if link and out is not None:
            with output.writing_to(out):
                place_file(blob.view().fd, out)
        path = blob.path
    if out is None:
        click.echo(path)


def _opened(
    store: Store, key: str, sources: list[Source], digest: str | None, size: int | None
) -> Blob:
    try:
        return store.open(key, sources, digest=digest, size=size)
    except ShmstreamError:
        raise
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def key_of(url: str) -> str:
    """The key of a blob without a digest: its URL without user and password, or its full path."""
    if "://" not in url:
        return os.path.abspath(url)
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{authority.rpartition('@')[2]}{rest[len(authority) :]}"


def _parsed(headers: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.UsageError(f"--header {header!r} is not of the form 'NAME: VALUE'.")
        parsed[name.strip()] = value.strip()
    return parsed


def _sources(urls: Sequence[str], headers: dict[str, str]) -> list[Source]:
    """The sources of `urls`, in the same order.

    Only sources on the host of the first URL get the headers: a header may be a secret.

    Raises:
        ValueError: a URL or a header is not valid.
    """
    if headers and urlsplit(urls[0]).scheme.lower() not in ("http", "https"):
        raise click.UsageError("--header goes with an http or https URL.")
    sources: list[Source] = []
    for url in urls:
        if headers and _host_of(url) == _host_of(urls[0]):
            from shmstream.sources.http import HTTPSource

            sources.append(HTTPSource(url, headers=headers))
        else:
            sources += as_sources(url)
    return sources


def _host_of(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port
