"""`Terms`: how a caller wants the answers with one blob to look, whatever is asked for.

The same for ASGI (`reply`) and for WSGI (`shmstream.wsgi`): the caller's headers, and the answer to
a request once it is known what the blob is (`conditions`).

A web server in front can send a complete blob itself, in nginx by X-Accel-Redirect, in Apache and
lighttpd by X-Sendfile. It judges ranges, but not our conditions; so a request with a condition is
answered here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol
from urllib.parse import quote

from shmstream import arguments
from shmstream.asgi.conditions import CONDITIONS, Answer, etag_of, with_the_blob, without_the_blob
from shmstream.asgi.headers import content_disposition, read_date, seconds_of


class Known(Protocol):
    """What is known of a blob: an `AsyncBlob`, a `Blob` or a `Description`."""

    @property
    def size(self) -> int | None:
        """Bytes; None while that is not known."""

    @property
    def validator(self) -> str | None:
        """The source's name for these very bytes."""

    @property
    def media_type(self) -> str | None:
        """What the source declares."""


class Terms:
    """How the answers with the blob of `key` look; the arguments are those of `InFlightResponse`.

    Raises:
        TypeError: `headers` is no mapping of texts.
        ValueError: `filename`, `last_modified` or `x_accel` is not valid.
    """

    def __init__(
        self,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        filename: str | None = None,
        last_modified: datetime | float | str | None = None,
        x_accel: str | None = None,
        x_sendfile: bool = False,
    ) -> None:
        self._key = key
        self._extra: dict[str, str] = {}
        if headers:
            arguments.headers("headers", headers)
            self._extra |= {name.lower(): value for name, value in headers.items()}
        if filename is not None:
            self._extra.setdefault("content-disposition", content_disposition(filename))
        self._media_type = media_type
        self._modified = None if last_modified is None else seconds_of(last_modified)
        if x_accel is not None and not x_accel.startswith("/"):
            raise ValueError(f"x_accel is a location of nginx, such as '/store/', not {x_accel!r}")
        self._accel, self._sendfile = x_accel, x_sendfile
        self.hands_over: bool = bool(x_accel or x_sendfile)
        """Whether a web server in front may send the blob."""

    def without_the_blob(self, request: Mapping[str, str]) -> Answer | None:
        """The answer if a condition decides; None if source or blob are needed."""
        if CONDITIONS.isdisjoint(request):
            return None
        etag = self._extra.get("etag") or etag_of(self._key)
        # `*` asks whether there is any blob, which only the store or the source knows.
        is_any = request.get("if-none-match", "").strip() == "*"
        if is_any or not (etag or self._modified):
            return None
        if etag is None and ("if-match" in request or "if-none-match" in request):
            return None  # the source may tell the ETag
        answer = without_the_blob(request, etag, self._modified)
        if answer is not None:
            answer.headers = answer.headers | self._extra
        return answer

    def answer(self, request: Mapping[str, str], about: Known, published: int = 0) -> Answer:
        """What to send for this request, now that the blob or its description is known.

        `published` is the number of bytes that are there.
        """
        validator = about.validator
        etag = self._extra.get("etag") or etag_of(self._key, validator)
        modified = self._modified
        if modified is None and validator is not None and '"' not in validator:
            modified = read_date(validator)  # the source's Last-Modified
        answer = without_the_blob(request, etag, modified)
        answer = answer or with_the_blob(request, etag, about.size, modified, published)
        if answer.status not in (304, 412):
            media_type = self._media_type or about.media_type or "application/octet-stream"
            answer.headers["content-type"] = media_type
        answer.headers |= self._extra
        return answer

    def handed_over(
        self, request: Mapping[str, str], about: Known, path: str, folder: str
    ) -> Answer | None:
        """The answer that has a web server in front send the complete blob at `path`; or None.

        `folder` is the folder of the store.
        """
        is_asked = "if-range" in request or not CONDITIONS.isdisjoint(request)
        if not self.hands_over or is_asked:
            return None
        answer = self.answer({}, about)
        del answer.headers["content-length"]
        if self._accel is not None:
            inner = quote(os.path.relpath(path, folder))
            answer.headers["x-accel-redirect"] = self._accel.rstrip("/") + "/" + inner
        else:
            answer.headers["x-sendfile"] = quote(path)
        answer.end = 0
        return answer
