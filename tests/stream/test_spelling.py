"""How people write a digest: each text means a digest, is a plain name, or is refused."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.stream import spelling
from shmstream.stream.spelling import ALGORITHMS, digest_in_url, new_hash, read_digest

DATA = b"some bytes"
HEX = hashlib.sha256(DATA).hexdigest()
BASE = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
BASE_32 = base64.b32encode(hashlib.sha256(DATA).digest()).decode()
HERE = [each for each in ALGORITHMS if each != "blake3"]  # that one needs an extra


def of(algorithm: str) -> str:
    return hashlib.new(algorithm, DATA).hexdigest()


SPELLINGS = [
    HEX,
    HEX.upper(),
    f"sha256:{HEX}",
    f"SHA256:{HEX.upper()}",
    f"Sha-256:{HEX}",
    f"sha_256={HEX}",
    f"sha256-{HEX}",
    f"sha256/{HEX}",
    f"sha256_{HEX}",
    f"sha256 {HEX}",
    f"SHA 256:{HEX}",
    f"sha256-{BASE}",
    f"sha256:{BASE}",
    f"sha256={BASE.rstrip('=').replace('+', '-').replace('/', '_')}",
]


def test_spellings_of_one_digest() -> None:
    assert {each: read_digest(each) for each in SPELLINGS} == dict.fromkeys(
        SPELLINGS, f"sha256:{HEX}"
    )


WAYS: list[Callable[[str, bytes], str]] = [
    lambda name, raw: f"{name}:{raw.hex()}",
    lambda name, raw: f"{name.upper()}:{raw.hex().upper()}",
    lambda name, raw: f"{name}={raw.hex()}",
    lambda name, raw: f"{name}-{base64.b64encode(raw).decode()}",
    lambda name, raw: f"{name.replace('_', '-')}:{raw.hex()}",
]


def test_every_algorithm() -> None:
    for algorithm in HERE:
        raw = bytes.fromhex(of(algorithm))
        assert ALGORITHMS[algorithm] == 2 * len(raw)
        for spell in WAYS:
            assert read_digest(spell(algorithm, raw)) == f"{algorithm}:{raw.hex()}"
        hashed = new_hash(algorithm)
        hashed.update(DATA)
        assert (hashed.name, hashed.digest()) == (algorithm, raw)


def test_bare_hex_digits() -> None:
    assert read_digest(of("sha512").upper()) == f"sha512:{of('sha512')}"
    for name in ("md5", "sha1", "sha224", "sha384"):
        with pytest.raises(ValueError, match=rf"does not say .* '{name}:' in front.* 'name:"):
            read_digest(of(name))


REFUSED = [
    HEX[:-1],
    HEX + "0",
    HEX[:48],
    "0x" + HEX,
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX[:-1]}g",
    f"sha256: {HEX}",
    f"sha256::{HEX}",
    "sha256:",
    "SHA512:abc",
    f"sha256-{HEX[:-1]}",
    f"sha256-{BASE[:-1]}A",
    f"sha256-{BASE} sha512-abc",
    f"sha256-{BASE}?option",
    f"md5:{HEX}",
    f"sha1:{of('md5')}",
    f"sha1={of('md5')}",
    "md5:some name",
    f"sha256sum={HEX}",
    f"sha512-256:{HEX}",
    f"blake2b-256:{HEX}",
    f"md4:{of('md5')}",
    f"ripemd160:{of('sha1')}",
    "CRC32:1234abcd",
    "crc32c=1234abcd",
    f"xxh64:{HEX[:16]}",
    f"whirlpool:{of('sha512')}",
    f" {HEX}",
    f"{HEX}\n",
    f"sha256:{HEX}\r\n",
    f"\tsha256:{HEX} ",
    f"\ufeff{HEX}",
    f"sha256:{HEX}\0",
    f'"sha256:{HEX}"',
    f"'{HEX}'",
    f" {of('md5')}",
    f"sha256\N{FULLWIDTH COLON}{HEX}",
    f"\N{FULLWIDTH LATIN SMALL LETTER S}ha256:{HEX}",
    f"{HEX}  model.bin",
    f"{HEX} *model.bin",
    f"SHA256 (model.bin) = {HEX}",
    f"MD5 (model.bin) = {of('md5')}",
    f"(stdin)= {HEX}",
    f"0X{HEX}",
    *(
        f"sha256{each}{HEX}"
        for each in (".", "$", "#", "@", "|", ",", ";", "~", "+", "%3A", "\t", "(")
    ),
    f"sha256({HEX})",
    f"{{SHA256}}{BASE}",
    f"[{HEX}]",
    f"@sha256:{HEX}",
    f"#sha256={HEX}",
    f"--hash=sha256:{HEX}",
    f"integrity: sha256-{BASE}",
    f"checksum:{HEX}",
    f"digest={HEX}",
    f"urn:sha256:{HEX}",
    f"ni:///sha-256;{BASE.rstrip('=').replace('+', '-').replace('/', '_')}",
    f'W/"{of("md5")}"',
    f"etag:{of('md5')}",
    f"content-md5:{of('md5')}",
    f"x-amz-checksum-sha256: {BASE}",
    f"Content-Digest: sha-256=:{BASE}:",
    f"model_sha256:{HEX}",
    f"oid sha256:{HEX}",
    f"h1:{BASE}",
    f"nih:sha-256;{HEX}",
    f"hash://sha256/{HEX}",
    f"\N{LEFT DOUBLE QUOTATION MARK}{HEX}\N{RIGHT DOUBLE QUOTATION MARK}",
    f"\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}md5:{of('md5')}",
    f"b3:{HEX}",
    f"b3sum:{HEX}",
    f"siphash:{HEX[:16]}",
    f"sha:{of('sha1')}",
    f"SHA={base64.b64encode(hashlib.sha1(DATA).digest()).decode()}",
    f"b2:{of('blake2b')}",
    "crc32c=AAAAAA==",
    BASE,
    base64.b64encode(hashlib.md5(DATA).digest()).decode(),
    ":".join(HEX[each : each + 2] for each in range(0, 64, 2)),
    " ".join(HEX[each : each + 2] for each in range(0, 64, 2)),
    " ".join(HEX[each : each + 8] for each in range(0, 64, 8)),
    "-".join(HEX[each : each + 8] for each in range(0, 64, 8)),
    f"ripemd160-{base64.b64encode(hashlib.sha1(DATA).digest()).decode()}",
    f"sha512_256-{BASE}",
    f"sm3-{HEX}",
    BASE_32,
    BASE_32.rstrip("=").lower(),
    f"bafkrei{BASE_32[:52].lower()}",
    "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
]


def test_what_looks_like_a_digest_is_refused() -> None:
    for text in REFUSED:
        with pytest.raises(ValueError, match=r"looks like a digest.*put another word in front"):
            pytest.fail(f"{text!r} means {read_digest(text)}")


NAMES = [
    "a name",
    "sha256",
    "md5",
    "",
    " ",
    "https://host/model.bin",
    f"https://host/{HEX}",
    f"https://host/model.bin?sha256={HEX}",
    f"image@sha256:{HEX}",
    f"blobs/sha256/{HEX}",
    f"name:{HEX}",
    f"git:{of('sha1')}",
    f"git {of('sha1')}",
    f"model-{HEX}",
    f"{HEX}.bin",
    f"{HEX}-v2",
    f"{of('md5')}/{of('md5')}",
    HEX[:16],
    "20261129",
    "deadbeef",
    "550e8400-e29b-41d4-a716-446655440000",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "00:1a:2b:3c:4d:5e",
    "shape:12345678",
    "b200:12345678",
    "hash: table",
    "model-digest: none yet",
    "h1: a title",
    "b3:minor",
    f"oid:{of('sha1')}",
    "sha256.tar.gz",
    "sha256.txt",
    "urn:isbn:0451450523",
    "(a name)",
    "@org/package",
    "2026 11 29 12 00 00",
    'W/"v1"',
    "sha256-checksums-of-all-the-models",
    "sha1-hulud",
    "md5 of the thing",
    "shards:0123456789abcdef",
    "tiger:photos of last year",
    "sha512-crypt-of-all-the-passwords-there-are",
    "shards-0123456789abcdef",
    "Qm of the quarter",
    "123e4567-e89b-12d3-a456-426614174000",
    "\ud800",
    "\N{LATIN SMALL LETTER LONG S}ha",
    "x" * 300_000,
    "x-" * 100_000,
    "(" * 300_000,
]


def test_plain_names() -> None:
    assert {each for each in NAMES if read_digest(each) is not None} == set()


def test_the_fragment_of_a_url_tells_a_digest() -> None:
    for url in (
        f"https://host/a.whl#sha256={HEX}",
        f"http://host/#egg=a&SHA-256={HEX.upper()}&x=y",
    ):
        assert read_digest(url) is None, "it is a name"
        assert digest_in_url(url) == f"sha256:{HEX}"
    for name in (*NAMES, "https://host/#part", f"https://host/#part={HEX}", f"file#sha256={HEX}"):
        assert digest_in_url(name) is None
    with pytest.raises(ValueError, match="sha256 has 64 hex digits"):
        digest_in_url(f"https://host/a.whl#sha256={HEX[:-1]}")


def test_a_digest_that_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    spelling._missing.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'shmstream\[blake3\]'"):
        read_digest(f"blake3:{HEX}")
    spelling._missing.cache_clear()


def test_blake3() -> None:
    pytest.importorskip("blake3", reason="the extra `blake3` is not installed")
    hashed = new_hash("blake3")
    hashed.update(b"")
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert hashed.hexdigest() == empty
    assert read_digest(f"BLAKE3:{empty.upper()}") == f"blake3:{empty}"


URLS = some.text(some.characters(codec="ascii") | some.sampled_from("()=:'\"\uff09")).map(
    "https://".__add__
)


@given(
    URLS
    | some.lists(some.sampled_from([HEX, "(", ")", " = ", "=", "/", "x", BASE])).map(
        lambda parts: "http://" + "".join(parts)
    )
)
@example(f"https://host/(file) = {HEX}")
@example(f"https://host/(file\uff09={HEX}")
def test_urls_that_are_known_at_once_are_plain_names_to_every_rule(text: str) -> None:
    if spelling._PLAIN.fullmatch(text):
        assert spelling._read(text) is None
        assert not spelling._seems_one(spelling._inner(text))


def test_urls_that_look_like_printed_digests_are_refused() -> None:
    for text in (f"https://host/(file) = {HEX}", f"https://host/(file\uff09={HEX}"):
        with pytest.raises(ValueError, match="looks like a digest"):
            read_digest(text)


PIECES = some.sampled_from(
    ["sha256", "sha-512", "md5", "SHA1", "crc32", "name", ":", "=", "-", "/", " ", "\n", '"', "0x",
     HEX, HEX[:-1], HEX.upper(), of("md5"), of("sha512"), BASE, BASE[:-1], "g", "\0", "\ud800"]
)  # fmt: skip


@given(some.text(some.characters(exclude_categories=())) | some.lists(PIECES).map("".join))
@example("sha256:" + "0" * 64 + "\n")
def test_any_text_has_one_meaning_or_is_refused(text: str) -> None:
    try:
        found = read_digest(text)
    except ValueError:
        return
    if found is None:
        assert text.lower() != f"sha256:{HEX}"
        return
    algorithm, _, digits = found.partition(":")
    assert len(digits) == ALGORITHMS[algorithm]
    assert set(digits) <= set("0123456789abcdef")
    assert read_digest(found) == found, "it is its own spelling"
