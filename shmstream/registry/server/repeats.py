"""`Repeats`: the requests that this worker can answer without the application.

Many clients ask for the same small blob with the very same bytes. An application may tell, with the
head of a response, that an equal request may get it again (`again`, in `asgi/messages`). Then
`KeptProtocol` answers the next equal request in one step of the event loop, in the short way:

    1 look at what has come: it is one head, which is known, and nothing else
    2 call `again`: it opens the blob as every hit does, or says no
    3 fill the record of the connection with the head of the response (K1)
    4 give head and file to the kernel
    5 read the request from the socket (K2)
    6 tell the application, which counts and logs the response

If something is not as usual at 1 or 2, the usual way answers, and nothing has happened. If the
kernel takes only a part at 4, the usual way sends the rest, as if another worker had sent that part
and was killed (`Step.RESUME`). Then the application answers, counts and logs the request, and 5 and
6 are left out. So the limits for slow clients are those of the usual way.

    meanwhile                                what happens
    the blob is evicted before 2             `again` says no; the usual way downloads it
    the blob is replaced before 2            `again` says no if its size or its validator differ
    it is evicted or replaced after 2        the client gets the bytes of the open file, as always
    likewise, and 4 sent a part              the usual way compares the new head with the old one,
                                             and cuts the client if they differ (`is_same_content`)
    the worker is killed after 3             the next worker finds the record, as after a usual
                                             response (`connections`): it answers the request in the
                                             usual way, and leaves out what the client has
    a second request came with the first     what has come is no known head: the usual way
    a second request comes after 1           it stays in the socket: 5 reads the first one only
    the client ends its side                 the next look at the socket shows it
    the server stops                         its signal is handled before 1 or after 6; after it the
                                             usual way tells the client that the connection ends

A head becomes known only if all of this is true; `KeptProtocol` and `remember` check it:

    - it is a GET of HTTP/1.1 without a body, on a connection that goes on; it came as a whole
    - the response is a 200 with a strong ETag, and its body is small
    - no proxy tells another address of the client: uvicorn believes some proxies, and others not
    - it has no credentials and no cookie, which would stay in memory
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shmstream.asgi.messages import Again
from shmstream.asgi.protocol import plain_head

_MOST = 512  # heads
_MOST_BYTES = 256 * 1024  # of all heads together
_NOT_FOR_ALL = (b"x-forwarded-", b"authorization", b"proxy-authorization", b"cookie")
"""What the names of some headers begin with, of requests that are not remembered."""

Fields = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class Repeat:
    """A response that may be sent again."""

    again: Again
    fields: list[tuple[bytes, bytes]]
    """Its headers, but for those that the server gives to all responses."""
    count: int
    """Bytes of its body."""
    _of_server: object = None
    _head: bytes = b""

    def head(self, of_server: list[tuple[bytes, bytes]]) -> bytes:
        """Its head with the server's own headers, which are another list when they change."""
        if of_server is not self._of_server:
            head = plain_head(200, [*of_server, *self.fields])
            self._of_server, self._head = of_server, b"" if head is None else head[0]
        return self._head


class Repeats:
    """By the bytes of its head, what a request gets again. For one event loop.

    `most` heads are known at most; the oldest one is forgotten first.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: dict[bytes, Repeat] = {}
        self.find: Callable[[bytes], Repeat | None] = self._known.get
        """What a request with that head gets; None if that is not known."""
        self._size = 0

    def remember(self, head: bytes, asked: Fields, repeat: Repeat) -> None:
        """Note what a request gets. `asked` are its headers."""
        has_date = any(name == b"date" for name, _ in repeat.fields)
        if has_date or any(name.startswith(_NOT_FOR_ALL) for name, _ in asked):
            return
        self.forget(head)
        self._known[head] = repeat
        self._size += len(head)
        while len(self._known) > self._most or self._size > _MOST_BYTES:
            self.forget(next(iter(self._known)))

    def forget(self, head: bytes) -> None:
        """Have the next request with that head answered in the usual way. Idempotent."""
        if self._known.pop(head, None) is not None:
            self._size -= len(head)
