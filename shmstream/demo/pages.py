"""What the acts download, and the origin in threads of this process that serves it.

Of the largest page the first answer never has the last quarter: it waits there for the client to
end. That client is to be killed in the middle, however fast everything goes.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from shmstream.demo.stage import digest_of
from shmstream.sources.origin import Fault, Request, Server
from shmstream.system.signals import undisturbed


class Page:
    """A file to serve, and what the headers of an answer say of it."""

    def __init__(self, file: Path, media_type: str = "application/octet-stream") -> None:
        self.file = file
        self.media_type = media_type
        self.size: int = file.stat().st_size
        self.digest: str = digest_of(file)


class Origin(Server):
    """Serves `pages`, by their paths, at `rate` bytes a second; a rate of 0 has no limit."""

    def __init__(self, undo: ExitStack, pages: Mapping[str, Page], rate: float) -> None:
        """Begin to serve; `undo` ends it."""
        super().__init__()
        self.pages = pages
        self.rate = rate
        self.largest: str = max(pages, key=lambda path: pages[path].size)
        with undisturbed():  # its threads inherit this: signals are for the main thread
            listener = socket.create_server(("127.0.0.1", 0))
            # Bytes in the kernel's buffers count as sent, so these buffers are small.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            self.url: str = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self.start(listener)
        undo.callback(self.stop)

    @property
    def gets(self) -> list[Request]:
        """The requests so far that asked for bytes, in turn."""
        return [each for each in self.asked if each.method == "GET"]

    def answer(self, channel: socket.socket, request: Request) -> bool:
        """Answer with a page."""
        if (page := self.pages.get(request.path)) is None:
            self.send_head(channel, request, 404, {"Content-Length": 0})
            return True
        headers = {"Content-Type": page.media_type, "Docker-Content-Digest": page.digest}
        faults: dict[int, Fault] = {}
        if request in [each for each in self.gets if each.path == self.largest][:1]:
            faults[page.size * 3 // 4] = partial(_wait_for_the_end, channel)
        with page.file.open("rb") as file:
            etag = f'"{page.digest}"'
            return self.send_file(channel, request, file.fileno(), etag, headers, self.rate, faults)


def _wait_for_the_end(channel: socket.socket) -> bool:
    select.select([channel], [], [])
    return False
