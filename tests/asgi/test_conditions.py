"""Which status and range a request gets: for every header an answer, and one that is consistent."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.asgi.conditions import Answer, etag_of, with_the_blob, without_the_blob

KEY = "sha256:" + "a" * 64
ETAG = f'"{KEY}"'

SIZES = some.integers(0, 1 << 40)
BOUNDS = some.integers(0, 1 << 41)
TAGS = some.from_regex(r'(W/)?"[a-c]{0,2}"', fullmatch=True)
HEADERS = some.one_of(
    some.text(max_size=60),
    some.text(alphabet='bytes=0123456789-, "W/*abc\t', max_size=60),
    some.from_regex(r"bytes=\s*\d{0,21}-\d{0,21}(,\d{0,3}-\d{0,3}){0,3}", fullmatch=True),
    some.lists(TAGS, max_size=4).map(", ".join),
)
REQUESTS = some.dictionaries(
    some.sampled_from(["range", "if-range", "if-match", "if-none-match"]), HEADERS
)


def is_consistent(answer: Answer, size: int | None) -> bool:
    """Whether status, headers and range say the same."""
    length = answer.headers.get("content-length")
    told = answer.headers.get("content-range")
    if answer.status == 200:
        whole = length is None if size is None else length == str(size)
        return whole and told is None and (answer.start, answer.end) == (0, size)
    if answer.status == 206:
        assert size is not None
        assert answer.end is not None
        is_part = 0 <= answer.start < answer.end <= size
        is_told = told == f"bytes {answer.start}-{answer.end - 1}/{size}"
        return is_part and is_told and length == str(answer.end - answer.start)
    return answer.status == 416 and told == f"bytes */{size}" and length == "0"


@given(REQUESTS, some.none() | TAGS, some.none() | SIZES)
@example({"range": "bytes=-0"}, None, 0)
@example({"range": "bytes=0-"}, None, 0)
@example({"range": "bytes=-5"}, None, 0)
@example({"range": "bytes=" + "9" * 19 + "-"}, None, 10)
@example({"range": "bytes=" + "9" * 60_000 + "-"}, None, 10)
@example({"if-match": '"' * 100_000, "if-none-match": 'W/"' * 50_000}, '"a"', None)
@example({"range": "bytes=\u0661-\u0662"}, None, 10)
def test_whatever_is_asked_has_an_answer(
    request: dict[str, str], etag: str | None, size: int | None
) -> None:
    early = without_the_blob(request, etag)
    if early is not None:
        assert early.status == (304 if early.headers.get("content-length") is None else 412)
        assert ("if-none-match" if early.status == 304 else "if-match") in request
    answer = with_the_blob(request, etag, size)
    assert is_consistent(answer, size), answer
    for each in (early, answer):
        if each is not None:
            assert each.headers.get("etag") == etag
            assert each.headers["accept-ranges"] == "bytes"


@given(BOUNDS, some.none() | BOUNDS, SIZES)
def test_a_range_is_what_it_says(first: int, last: int | None, size: int) -> None:
    answer = with_the_blob({"range": f"bytes={first}-{'' if last is None else last}"}, ETAG, size)
    wanted = range(size)[first : None if last is None else last + 1]
    if last is not None and last < first:
        assert answer.status == 200, "no valid range"
    elif wanted:
        assert (answer.status, answer.start, answer.end) == (206, wanted[0], wanted[-1] + 1)
    else:
        assert answer.status == 416


@given(BOUNDS, SIZES)
def test_a_suffix_is_the_end(count: int, size: int) -> None:
    answer = with_the_blob({"range": f"bytes=-{count}"}, ETAG, size)
    wanted = range(size)[max(size - count, 0) :]
    if wanted:
        assert (answer.status, answer.start, answer.end) == (206, wanted[0], size)
    else:
        assert answer.status == 416


@given(some.lists(TAGS, max_size=4), TAGS)
def test_tags_are_compared_as_the_standard_has_it(offered: list[str], etag: str) -> None:
    """If-None-Match weakly, If-Match and If-Range strongly."""
    header = ", ".join(offered)
    weakly = etag.removeprefix("W/") in [each.removeprefix("W/") for each in offered]
    strongly = etag in offered and not etag.startswith("W/")
    unchanged = without_the_blob({"if-none-match": header}, etag)
    assert (unchanged is not None) == weakly
    assert unchanged is None or unchanged.status == 304
    failed = without_the_blob({"if-match": header}, etag)
    assert (failed is None) == strongly
    assert failed is None or failed.status == 412
    partly = with_the_blob({"if-range": header, "range": "bytes=0-0"}, etag, 5)
    assert (partly.status == 206) == (offered == [etag] and strongly)


@given(some.text(max_size=80), some.none() | some.text(max_size=80))
def test_an_etag_is_a_strong_tag_or_none(key: str, validator: str | None) -> None:
    etag = etag_of(key, validator)
    if etag is None:
        return
    assert etag == f'"{key}"' or etag == validator
    assert etag.startswith('"')
    assert etag.endswith('"')
    assert '"' not in etag[1:-1]


def test_strong_and_weak_tags() -> None:
    weak, strong = 'W/"x"', '"x"'
    for condition in (weak, strong):
        for etag in (weak, strong):
            answer = without_the_blob({"if-none-match": condition}, etag)
            assert answer is not None
            assert answer.status == 304
            both = condition == etag == strong
            assert (without_the_blob({"if-match": condition}, etag) is None) == both
            request = {"if-range": condition, "range": "bytes=0-0"}
            assert with_the_blob(request, etag, 5).status == (206 if both else 200)


def test_a_key_that_means_a_digest_is_an_etag() -> None:
    for key in (KEY, KEY.upper(), "A" * 64):
        assert etag_of(key) == ETAG
    for key in ("a name", "sha256:abc", "a" * 40):
        assert etag_of(key) is None


def test_numbers_of_any_length() -> None:
    """Bounds behind the end of a blob, however many digits they have, and zeros before them."""
    huge = "9" * 60_000
    for wanted, status, start, end in (
        (f"{huge}-", 416, 0, 0),
        (f"{'1' * 20}-{'1' * 21}", 416, 0, 0),
        (f"5-{huge}", 206, 5, 10),
        (f"-{huge}", 206, 0, 10),
        (f"{'0' * 5000}3-{'0' * 5000}4", 206, 3, 5),
        (f"{huge}-5", 200, 0, 10),
        ("bytes=3-4", 200, 0, 10),
    ):
        answer = with_the_blob({"range": f"bytes={wanted}"}, None, 10)
        assert (answer.status, answer.start, answer.end) == (status, start, end), wanted[:50]
    assert with_the_blob({"range": "Bytes=3-4"}, None, 10).status == 206
