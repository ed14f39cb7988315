"""Where bytes come from: files, iterables, HTTP, whatever fsspec knows, or a class of your own.

base           a *source* opens at an offset and gives a *feed*, an iterable of buffers
addresses      which addresses are private
select         which sources a user means by a URL, a path, a file object, ...
local          files, file objects, iterables
command        the output of a command, complete only if the command succeeds
renewed        a source whose address expires, such as a signed URL
netrc_file     names and passwords for hosts
http           `HTTPSource`
http_client    asks over HTTP: redirects, ranges, statuses
http_pool      connections, as real servers need them
http_tls       which servers to trust, and which certificate to show them
http_coding    bodies that a server has encoded, or says so
http_guard     keeps redirects from leading to private addresses
http_body      has the kernel move the body of a response to the file
fsspec         `FsspecSource`
fsspec_guard   the same as http_guard, for the HTTP file system of fsspec
download       asks sources in turn, tries again, and never mixes two contents
retries        how often, and after which pauses
conformance    what every source must do, as tests for a source of your own
origin         an HTTP server to try sources with: for the demo, the tests and the benches

`HTTPSource` and `FsspecSource` are imported when they are first asked for, because each needs an
extra.
"""

from typing import TYPE_CHECKING

from shmstream.sources.base import Description, Feed, Source
from shmstream.sources.command import CommandSource, ProcessSource
from shmstream.sources.local import FileSource, IterableSource, PathSource
from shmstream.sources.select import as_sources

if TYPE_CHECKING:
    from shmstream.sources.fsspec import FsspecSource
    from shmstream.sources.http import HTTPSource

__all__ = [
    "CommandSource",
    "Description",
    "Feed",
    "FileSource",
    "FsspecSource",
    "HTTPSource",
    "IterableSource",
    "PathSource",
    "ProcessSource",
    "Source",
    "as_sources",
]


def __getattr__(name: str) -> object:
    if name == "HTTPSource":
        from shmstream.sources.http import HTTPSource

        return HTTPSource
    if name == "FsspecSource":
        from shmstream.sources.fsspec import FsspecSource

        return FsspecSource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
