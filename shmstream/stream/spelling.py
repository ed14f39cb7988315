"""How people write a digest: which texts mean one, and which algorithms can be verified.

Keys, the argument `digest` and the command line read texts here, so that a text means the same
everywhere. A text that looks like a digest is either verified or refused. It never counts as a
plain name, because then wrong bytes would be accepted without a word.

    sha256:9F86...                      the digest sha256:9f86... (any algorithm of `ALGORITHMS`)
    sha-256=..., sha256-..., sha256/... the same
    64 or 128 hex digits                sha256 or sha512, as sha256sum and sha512sum print them
    sha384-OLBgp1Gs...                  base64 instead of hex digits, as in SRI and in lock files
    32, 40, 56, 96, ... hex digits      refused: nothing says which algorithm that is
    sha256:9f86, crc32:12345678         refused: not all of a digest, or not verifiable
    sha256.9f86..., 9f:86:..., n4bQ...= refused: joined otherwise, in pieces, base64 alone, a CID
    a digest in quotes or white space   refused; likewise behind `hash:`, `urn:`, `@`, `#`, ...
    model-9f86..., git:9f86...          plain names: another word stands in front
    https://host/a.whl#sha256=9f86...   a plain name, whose bytes must have that digest
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

ALGORITHMS: dict[str, int] = {
    "md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128,
    "sha3_224": 56, "sha3_256": 64, "sha3_384": 96, "sha3_512": 128,
    "blake2b": 128, "blake2s": 64, "blake3": 64,
}  # fmt: skip
"""The algorithms that a digest may name, and the number of hex digits of each."""

_BARE = {64: "sha256", 128: "sha512"}  # hex digits -> the algorithm that is meant without a name
_LIKELY = {32: "md5", 40: "sha1", 56: "sha224", 96: "sha384"}  # ... that is only proposed
_FEWEST = 32  # hex digits; a shorter text of hex digits alone is a plain name

_FLAGS = re.ASCII | re.IGNORECASE | re.DOTALL
_NAME = r"(md-?5|sha[-_ ]?(?:1|224|256|384|512)|sha3[-_ ]?(?:224|256|384|512)|blake2[bs]|blake3)"
_MARKED = re.compile(rf"{_NAME}\s*[:=](.*)", _FLAGS)  # what follows must be a digest
_JOINED = re.compile(rf"{_NAME}[-_/ ]+(\S+)(.*)", _FLAGS)  # what follows may be a plain name
_APART = re.compile(rf"{_NAME}(?:%3a|%3d|[^a-z0-9])+(.+)", _FLAGS)  # as no name is joined
_OTHER = (  # algorithms that nothing here can compute
    r"((?:(?:md|sha|shake|rmd|crc|xxh|sm|skein)[-_]?\d|blake|ripemd|adler|xxhash|whirlpool|tiger"
    r"|keccak|gost|streebog|murmur|fnv|k12|meow|(?:city|farm|highway|metro|sip|spooky|wy)hash|quickxor"
    r"|sha\b|b2[bs]?\b|b3\b|b[23]sum)[\w/-]*)"
)
_UNKNOWN = re.compile(
    _OTHER + r"\s*[:=]\s*(?:[0-9a-f]{8,}|[a-z0-9+/]{20,}={0,2}|[a-z0-9+/]{6}==)", _FLAGS
)
_UNKNOWN_JOINED = re.compile(
    _OTHER + rf"-(?:[0-9a-f]{{{_FEWEST},}}|[a-z0-9+/]{{21,}}={{1,2}})", _FLAGS
)
_HEX = re.compile(r"[0-9a-f]+", _FLAGS)
_SPELLED = re.compile(
    "|".join(rf"{name}:[0-9a-f]{{{count}}}" for name, count in ALGORITHMS.items())
)
_NEARLY = re.compile(r"[0-9a-f]{16,}|[a-z0-9+/]{20,}={0,2}", _FLAGS)
_PRINTED = re.compile(  # a line of sha256sum, or of `sha256sum --tag`
    rf"\\?[0-9a-f]{{{_FEWEST},}} [ *].+|[a-z0-9/-]{{0,20}} ?\(?.*\) ?= ?[0-9a-f]{{8,}}", _FLAGS
)
_PIECES = re.compile(  # as certificates and Windows print it
    r"[0-9a-f]{2}([: -])(?:[0-9a-f]{2}\1){14,}[0-9a-f]{2}|(?:[0-9a-f]{4,} ){3,}[0-9a-f]{4,}"
    r"|(?:[0-9a-f]{8}[:_-]){3,}[0-9a-f]{8}",
    _FLAGS,
)
_BASE = re.compile(  # 16, 20, 28, 32 or 64 bytes
    r"(?:[a-z0-9+/]{22}=|[a-z0-9+/]{38}=|[a-z0-9+/]{27}|[a-z0-9+/]{43}|[a-z0-9+/]{86}=)=", _FLAGS
)
_BASE32 = re.compile(r"[a-z2-7]{52}(?:={4})?", _FLAGS)  # 32 bytes
_CID = re.compile(r"b[a-z2-7]{58}|Qm[1-9A-HJ-NP-Za-km-z]{44}")  # as IPFS names its blocks
_REFUSED = (
    (_PRINTED, "with the name of its file", "the digest alone"),
    (_PIECES, "in pieces", "an algorithm, ':' and the hex digits with nothing between"),
    (_BASE, "in base64, but does not say of which algorithm", "'sha256-' in front"),
    (_BASE32, "in base32", "'sha256:' and 64 hex digits"),
    (_CID, "of a block, and not of the bytes", "'sha256:' and 64 hex digits"),
)
_FOLDED = {name.replace("_", ""): name for name in ALGORITHMS}
OCI_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
"""A digest of an OCI registry, as most keys are: to know them at once saves 2 us."""
_PLAIN = re.compile(r"https?://[!-(*-~]*")  # most names, likewise; only `_PRINTED`, with its ")",
# and full-width letters could make a digest of a text that begins so
_FRAGMENT = re.compile(rf"https?://[^#]*#(?:.*&)?{_NAME}=([^&]*)(?:&.*)?", _FLAGS)
_EDGES = "\"'`<>@#|,;*()[]{}"
_LABEL = re.compile(  # says that a digest follows
    r"hash://|ni://[^/]*/|W/|oid\s+(?=sha)|(?:urn|h1|nih|(?:[\w-]{0,30}?(?:hash|checksum|digest|integrity"
    r"|fingerprint|e-?tag)|[\w-]{1,30}?[-_](?:md5|sha\d+))(?:[-_]sha\d+)?)\s*[:=]\s*",
    _FLAGS,
)


class Hash(Protocol):
    """A hash that is computed step by step."""

    @property
    def name(self) -> str:
        """The algorithm, as in `ALGORITHMS`."""

    def update(self, data: Buffer, /) -> object:
        """Hash more bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes so far."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in lower-case hex digits."""


def new_hash(algorithm: str) -> Hash:
    """A hash of no bytes yet.

    Raises:
        ValueError: this Python cannot compute it; the text tells what is missing.
    """
    if algorithm == "blake3":
        try:
            from blake3 import blake3
        except ImportError as missing:
            reason = "blake3 needs the package of that name: pip install 'shmstream[blake3]'"
            raise ValueError(reason) from missing
        fresh: Hash = blake3()
        return fresh
    return hashlib.new(algorithm, usedforsecurity=False)


def is_spelled(text: str) -> bool:
    """Whether `text` is a digest in its one spelling: `algorithm:hex`, in lower case."""
    return (OCI_DIGEST.fullmatch(text) or _SPELLED.fullmatch(text)) is not None


def read_digest(text: str) -> str | None:
    """`algorithm:hex`, in lower case, if `text` means a digest; None if it is a plain name.

    Raises:
        ValueError: `text` looks like a digest and cannot be verified; the error tells what to do.
    """
    if OCI_DIGEST.fullmatch(text):
        return text
    if _PLAIN.fullmatch(text):
        return None
    found = _read(text)
    if found is None and (inner := _inner(text)) != text and _seems_one(inner):
        raise _refusal(text, "with something around it", "the digest alone")
    return found


def digest_in_url(text: str) -> str | None:
    """The digest of the bytes behind a URL, if its fragment tells it: `https://...#sha256=9f86...`.

    Indexes of Python packages write URLs so, and pip verifies by it.

    Raises:
        ValueError: the fragment names an algorithm, and what follows is no digest of it.
    """
    found = _FRAGMENT.fullmatch(text) if "#" in text else None
    return None if found is None else read_digest(f"{found[1]}={found[2]}")


def _read(text: str) -> str | None:
    if _HEX.fullmatch(text[2:] if text[:2].lower() == "0x" else text):
        return _bare(text)
    if (marked := _MARKED.fullmatch(text)) is not None:
        name, value = _algorithm(marked[1]), marked[2]
        if (found := _value(name, value, loose=True)) is None:
            count = ALGORITHMS[name]
            what = f"'{name}:' and {count} hex digits"
            raise _refusal(text, f"and is none: {name} has {count} hex digits", what)
        return _verifiable(text, found)
    if (unknown := _UNKNOWN.fullmatch(text)) is not None:
        raise _unknown(text, unknown[1])
    for refused, reason, how in _REFUSED:
        if refused.fullmatch(text):
            raise _refusal(text, reason, how)
    if (joined := _JOINED.fullmatch(text)) is not None:
        found = _joined(text, _algorithm(joined[1]), joined[2], joined[3])
        if found is not None:
            return found
    _refuse_apart(text)
    return None


def _refuse_apart(text: str) -> None:
    """Raises:
    ValueError: an algorithm and a value are joined as in no name; or nothing can compute it.
    """
    if (unknown := _UNKNOWN_JOINED.fullmatch(text)) is not None:
        raise _unknown(text, unknown[1])
    if (apart := _APART.fullmatch(text)) is not None:
        name = _algorithm(apart[1])
        if _value(name, apart[2], loose=True) is not None:
            raise _refusal(text, "and is joined otherwise", f"'{name}:' and what follows")


def _unknown(text: str, algorithm: str) -> ValueError:
    reason = f"but {algorithm!r} is no algorithm that can be verified"
    return _refusal(text, reason, "one of " + ", ".join(ALGORITHMS))


def _bare(text: str) -> str | None:
    """What hex digits alone mean."""
    count = len(text)
    if count in _BARE and _HEX.fullmatch(text):
        return f"{_BARE[count]}:{text.lower()}"
    if count < _FEWEST:
        return None
    how = f"'{_LIKELY.get(count, 'sha256')}:' in front"
    raise _refusal(text, "but does not say of which algorithm", how)


def _joined(text: str, name: str, value: str, rest: str) -> str | None:
    """What an algorithm and a value mean that are joined as the words of a name may be."""
    if not rest and (found := _value(name, value, loose=False)) is not None:
        return _verifiable(text, found)
    if _NEARLY.fullmatch(value.partition("?")[0]) and rest[:1] in ("", " "):
        count = ALGORITHMS[name]
        what = f"'{name}:' and {count} hex digits, or '{name}-' and {count // 2} bytes in base64"
        raise _refusal(text, f"and is not exactly one of {name}", what)
    return None


def _algorithm(name: str) -> str:
    return _FOLDED[re.sub("[-_ ]", "", name.lower())]


def _value(name: str, value: str, *, loose: bool) -> str | None:
    """The digest with this `value`, in hex digits or base64; `loose`: also without padding."""
    if len(value) == ALGORITHMS[name] and _HEX.fullmatch(value):
        return f"{name}:{value.lower()}"
    size = ALGORITHMS[name] // 2
    if loose:  # as in the RECORD of a wheel
        value = value.replace("-", "+").replace("_", "/").rstrip("=") + "=" * (-size % 3)
    try:
        raw = base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        return None
    return f"{name}:{raw.hex()}" if len(raw) == size else None


def _verifiable(text: str, digest: str) -> str:
    algorithm = digest.partition(":")[0]
    if (reason := _missing(algorithm)) is not None:
        raise _refusal(text, f"that cannot be verified here ({reason})", "another algorithm")
    return digest


@cache
def _missing(algorithm: str) -> str | None:
    """Why this Python cannot compute a digest; None if it can."""
    try:
        new_hash(algorithm)
    except ValueError as error:
        return str(error)
    return None


def _inner(text: str) -> str:
    """`text` in its plainest characters, without quotes, brackets, white space and labels."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    while True:
        begin, end = 0, len(plain)
        while begin < end and _is_edge(plain[begin]):
            begin += 1
        while begin < end and _is_edge(plain[end - 1]):
            end -= 1
        plain = plain[begin:end]
        if (label := _LABEL.match(plain)) is None:
            return plain
        plain = plain[label.end() :]


def _is_edge(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in _EDGES or kind[0] in "ZC" or kind in ("Pi", "Pf")  # also curly quotes


def _seems_one(text: str) -> bool:
    try:
        return _read(text) is not None
    except ValueError:
        return True


def _refusal(text: str, reason: str, how: str) -> ValueError:
    return ValueError(
        f"{text[:200]!r} looks like a digest, {reason}. To have the bytes verified, give {how}; "
        "for a key that is a plain name, put another word in front, as in 'name:...'"
    )
