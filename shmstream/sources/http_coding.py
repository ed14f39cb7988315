"""Encoded bodies: what a Content-Encoding means, though nobody has asked for one.

    none      empty, `identity`, `aws-chunked`, a charset: the bytes are what they are
    gzip      the server has compressed the bytes on their way; or it only says so, because the
              stored file itself is compressed, as layers of images are

Which of the two it is, only the digest of all bytes tells. So a body that is said to be encoded is
read as a whole first, up to `LARGEST` bytes. Of a larger one the first bytes have to do
(`is_encoded`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from shmstream.stream.spelling import new_hash

if TYPE_CHECKING:
    from typing_extensions import Buffer

LARGEST = 32 << 20  # bytes
_GZIP = b"\x1f\x8b"
_TAR = slice(257, 262)  # where a tar file has the word "ustar"
_CODINGS = frozenset(("gzip", "x-gzip", "deflate"))
_NONE = frozenset(("", "identity", "none", "aws-chunked", "binary", "utf-8", "utf8", "us-ascii"))
_STEP = 1 << 20  # bytes; of what is decoded at one time


def is_none(told: str | None) -> bool:
    """Whether a Content-Encoding tells nothing that changes bytes, as some servers write it."""
    return all(each.strip().lower() in _NONE for each in (told or "").split(","))


def coding_of(told: str | None) -> str | None:
    """The coding that a Content-Encoding tells, if it is one that can be undone here; else None."""
    names = [each.strip().lower() for each in (told or "").split(",")]
    found = [each for each in names if each in _CODINGS]
    return found[0].removeprefix("x-") if len(found) == 1 else None


def decoded(data: bytes, told: str | None, limit: int) -> bytes:
    """`data` without its coding; as it is if it has none, or if at most `limit` bytes are wanted.

    `told` is its Content-Encoding.
    """
    if (coding := coding_of(told)) is None:
        return data
    decoder = _decoder(coding, data)
    try:
        found = decoder.decompress(data, limit + 1)
    except zlib.error:
        return data  # it is not what is told
    return found if decoder.eof and len(found) <= limit else data


def beginning(data: bytes, told: str | None, limit: int) -> bytes:
    """At most `limit` bytes of a text that begins with `data`; empty if it cannot be decoded.

    `told` is its Content-Encoding.
    """
    if is_none(told):
        return data[:limit]
    if (coding := coding_of(told)) is None:
        return b""
    try:
        return _decoder(coding, data).decompress(data, limit)
    except zlib.error:
        return data[:limit]  # it is not what is told


def decoding(data: Iterator[Buffer], coding: str) -> Iterator[bytes]:
    """The decoded bytes of a body, as they come.

    Raises:
        ValueError: it is not of that coding, or ends too early.
    """
    decoder = None
    for each in data:
        piece = bytes(each)
        while piece:
            if decoder is None or decoder.eof:  # a file of gzip may have several parts
                decoder = _decoder(coding, piece)
            try:
                found = decoder.decompress(piece, _STEP)
            except zlib.error as error:
                raise ValueError(f"its answer is no {coding}: {error}") from None
            piece = decoder.unconsumed_tail or decoder.unused_data
            if found:
                yield found
    if decoder is not None and not decoder.eof:
        raise EOFError(f"it ended in the middle of the {coding}")


def may_be_encoded(first: bytes | bytearray, coding: str) -> bool:
    """Whether a body that begins with `first` can be of that coding at all."""
    return coding != "gzip" or first.startswith(_GZIP)


def is_encoded(first: bytes, coding: str, digest: str | None) -> bool:
    """Whether a body that begins with `first` was encoded on its way.

    `digest`: that of the blob, if `first` is the whole body. Without it, what is decoded must look
    unlike a part of the stored file: a compressed layer, decoded, is a tar file, and most layers
    are stored compressed. Anything else is what a server would compress on its way.
    """
    if digest is not None:
        as_it_is = _digest((first,), digest)
        return digest != as_it_is and digest == _digest(_attempt(first, coding), digest)
    inner = next(_attempt(first, coding), b"")
    return bool(inner) and inner[_TAR] != b"ustar"


def _digest(data: Iterable[bytes], like: str) -> str:
    algorithm = like.partition(":")[0]
    running = new_hash(algorithm)
    for each in data:
        running.update(each)
    return f"{algorithm}:{running.hexdigest()}"


def _attempt(data: bytes, coding: str) -> Iterator[bytes]:
    try:
        yield from decoding(iter((data,)), coding)
    except (ValueError, EOFError):
        return


def _decoder(coding: str, first: bytes) -> zlib._Decompress:
    if coding == "gzip":
        return zlib.decompressobj(wbits=31)
    is_zlib = first[:1] == b"\x78"  # else it is raw: servers do not agree what deflate is
    return zlib.decompressobj(wbits=15 if is_zlib else -15)
