"""`SourceConformance`: tests that every source passes, for programmers of sources.

Subclass it in a test module, tell it how to make a source, and pytest runs the tests:

    from shmstream import Feed, SourceError
    from shmstream.sources.conformance import SourceConformance

    class Memory:
        name = "memory"

        def __init__(self, content: bytes | None) -> None:
            self.content = content

        def open(self, offset: int = 0, validator: str | None = None) -> Feed:
            if offset < 0:
                raise ValueError("an offset is a number of bytes")
            if self.content is None:
                raise SourceError(self.name, offset, "there is none", retryable=False)
            current = str(hash(self.content))
            size = len(self.content)
            if validator not in (None, current) or offset > size:
                offset = 0
            rest = self.content[offset:]
            return Feed(iter([rest] if rest else []), offset, size, current)

    class TestMemory(SourceConformance):
        describes = False

        def make_source(self, content: bytes) -> Memory:
            return Memory(content)

        def change(self, source: Memory, content: bytes) -> None:
            source.content = content

        def make_failing(self) -> Memory:
            return Memory(None)

What a source cannot do is declared by the attributes of the subclass. No test is skipped for that:
it then sees that the source says so in the way that `Source` asks for. A fixture of pytest that
`make_source` needs is taken by an autouse fixture of the subclass, which keeps it in `self`.

Needs pytest. Nothing in the library imports this module.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

try:
    import pytest
except ImportError as _missing:
    raise ImportError("the conformance tests need pytest: pip install pytest") from _missing

from shmstream.errors import SourceError
from shmstream.sources.base import Feed, Source, public
from shmstream.system.threads import Call

_CONTENT = b"".join(b"%07d\n" % number for number in range(25_000))  # 200,000 bytes of ASCII
_OTHER = _CONTENT[::-1]  # of the same size
_OFFSETS = (1, 100_000, len(_CONTENT) - 1)
_NO_VALIDATOR = "no validator that this source gave"


class SourceConformance:
    """The tests. A subclass says what its source can do, and how to make one."""

    opens_once = False
    """The source can be opened only once, as an iterable. A second time is a `SourceError`."""
    begins_anywhere = True
    """The source can begin at an offset. Without: every feed begins at 0."""
    tells_size = True
    """A feed has the size of the blob. Without: None."""
    has_validator = True
    """A feed has a validator. Without: None. With: `change` is needed."""
    describes = True
    """The source has `describe`. Without: it has no such attribute."""
    secrets: Sequence[str] = ()
    """Credentials that `make_source` gives to the source: they must not appear in its texts."""

    def make_source(self, content: bytes) -> Source:
        """A new source of a blob with this content, which is ASCII or empty."""
        raise NotImplementedError

    def make_failing(self) -> Source:
        """A source that cannot give its blob: it fails when it is opened, or when it is read."""
        raise NotImplementedError

    def change(self, source: Any, content: bytes) -> None:
        """Let the blob of a source that `make_source` made have another content."""
        raise NotImplementedError

    # What it is called.

    def test_name_has_no_credentials(self) -> None:
        """The name is a text without credentials; so is what Python shows of the source."""
        source = self.make_source(_CONTENT)
        assert isinstance(source.name, str), "a name is a text"
        assert source.name, "a name says something"
        assert "://" not in source.name or public(source.name) == source.name, (
            f"{source.name!r} has a user, a password or a query's values: use `base.public`"
        )
        for secret in self.secrets:
            assert secret not in source.name, "the name has a secret in it"
            assert secret not in repr(source), "repr() has a secret in it"

    # The bytes.

    def test_open_gives_the_whole_blob(self) -> None:
        """Without an offset a feed begins at 0 and gives every byte."""
        with self.make_source(_CONTENT).open() as feed:
            self._check_head(feed, 0, _CONTENT)
            assert _read(feed) == _CONTENT, "the feed gives other bytes than those of the blob"

    def test_an_empty_blob(self) -> None:
        """A blob without bytes is a feed that ends at once, and no error."""
        with self.make_source(b"").open() as feed:
            self._check_head(feed, 0, b"")
            assert _read(feed) == b"", "an empty blob has no bytes"

    def test_buffers(self) -> None:
        """Each buffer has bytes, and keeps them until the next one is asked for."""
        position = 0
        with self.make_source(_CONTENT).open() as feed:
            buffers = iter(feed)
            while (data := next(buffers, None)) is not None:
                with memoryview(data) as view, view.cast("B") as there:
                    end = position + len(there)
                    assert end > position, "an empty buffer is of no use"
                    assert there == _CONTENT[position:end], f"wrong bytes at {position}"
                position = end
        assert position == len(_CONTENT), f"the feed ended after {position} bytes"

    # Beginning elsewhere.

    @pytest.mark.parametrize("offset", _OFFSETS)
    def test_open_at_an_offset(self, offset: int) -> None:
        """A feed begins at the offset; if the source cannot do that, at 0, and says so."""
        with self.make_source(_CONTENT).open(offset) as feed:
            begin = offset if self.begins_anywhere else 0
            self._check_head(feed, begin, _CONTENT)
            assert _read(feed) == _CONTENT[begin:], f"wrong bytes after {begin}"

    def test_open_at_the_end(self) -> None:
        """At the very end there is nothing left; or the feed begins at 0."""
        end = len(_CONTENT)
        with self.make_source(_CONTENT).open(end) as feed:
            assert feed.offset in ((0, end) if self.begins_anywhere else (0,)), "begins nowhere"
            assert _read(feed) == _CONTENT[feed.offset :], f"wrong bytes after {feed.offset}"

    def test_open_behind_the_end(self) -> None:
        """An offset that the blob does not have begins at 0.

        A source that does not know the size cannot see that: it may give nothing there.
        """
        behind = len(_CONTENT) + 1
        with self.make_source(_CONTENT).open(behind) as feed:
            knows = self.tells_size or not self.begins_anywhere
            assert feed.offset in ((0,) if knows else (0, behind)), "the blob has no such offset"
            assert _read(feed) == _CONTENT[feed.offset :], f"wrong bytes after {feed.offset}"

    def test_a_negative_offset(self) -> None:
        """An offset is a number of bytes from the beginning."""
        with pytest.raises(ValueError):  # noqa: PT011  the text is the source's
            self.make_source(_CONTENT).open(-1).close()

    # Validators.

    def test_a_validator_that_is_handed_back(self) -> None:
        """A feed for the validator of an earlier feed goes on with the same content."""
        source = self.make_source(_CONTENT)
        with source.open() as first:
            validator = first.validator
            self._check_validator(validator)
            assert _read(first) == _CONTENT
        if self.opens_once:
            self._cannot_open_again(source)
            return
        offset = _OFFSETS[1]
        with source.open(offset, validator) as feed:
            begin = offset if self.begins_anywhere else 0
            self._check_head(feed, begin, _CONTENT)
            assert feed.validator == validator, "the content is the same, the validator is not"
            assert _read(feed) == _CONTENT[begin:]

    @pytest.mark.parametrize("validator", [_NO_VALIDATOR, "", '"\r\n'])
    def test_a_validator_of_another_source(self, validator: str) -> None:
        """A feed for a validator that the source does not know begins at 0."""
        with self.make_source(_CONTENT).open(_OFFSETS[1], validator) as feed:
            assert feed.offset == 0, (
                "the content may be another one than the one that was asked for"
            )
            assert _read(feed) == _CONTENT

    def test_a_content_that_changed(self) -> None:
        """A feed for the validator of another content begins at 0, with another validator."""
        if not self.has_validator:
            with self.make_source(_CONTENT).open() as feed:
                self._check_validator(feed.validator)
            return
        source = self.make_source(_CONTENT)
        with source.open() as first:
            before = first.validator
            assert _read(first) == _CONTENT
        self.change(source, _OTHER)
        with source.open(_OFFSETS[1], before) as feed:
            assert feed.offset == 0, "the content is another one by now"
            assert feed.validator != before, "the content is another one, the validator is not"
            assert _read(feed) == _OTHER

    # What the source says.

    def test_describe_agrees_with_open(self) -> None:
        """What the source says without giving bytes is what its feed says."""
        source = self.make_source(_CONTENT)
        describe = getattr(source, "describe", None)
        assert (describe is not None) == self.describes, "`describes` says otherwise"
        if describe is None:
            return
        described = describe()
        with source.open() as feed:
            assert described.size in (None, feed.size), "another size"
            assert described.validator in (None, feed.validator), "another validator"
            assert described.media_type in (None, feed.media_type), "another media type"

    # One feed and another.

    def test_two_feeds_one_after_the_other(self) -> None:
        """A source may be opened again, also after a feed that was not read to its end."""
        source = self.make_source(_CONTENT)
        with source.open() as first:
            next(iter(first))
        if self.opens_once:
            self._cannot_open_again(source)
            return
        for _ in range(2):
            with source.open() as feed:
                assert _read(feed) == _CONTENT

    # Closing.

    def test_close_may_be_called_again(self) -> None:
        """A feed may be closed at any time, and any number of times."""
        untouched = self.make_source(_CONTENT).open()
        half = self.make_source(_CONTENT).open()
        next(iter(half))
        whole = self.make_source(_CONTENT).open()
        _read(whole)
        for feed in (untouched, half, whole):
            for _ in range(3):
                feed.close()

    def test_close_in_another_thread(self) -> None:
        """Another thread may close a feed. Then it fails with a `SourceError`, or goes on."""
        feed = self.make_source(_CONTENT).open()
        got = bytearray(next(iter(feed)))
        errors: list[Exception] = []

        def close() -> None:
            try:
                feed.close()
            except Exception as error:  # noqa: BLE001  the test is to show it
                errors.append(error)

        closing = Call(close, "shmstream-conformance")
        closing.start()
        closing.join()
        assert not errors, f"closing in another thread failed: {errors}"
        with suppress(SourceError):
            for data in feed:
                got += data
            assert got == _CONTENT, "a feed that ends has given the whole blob"
        assert _CONTENT.startswith(got), "what came is the blob's"
        feed.close()

    # Failing.

    def test_a_failure_is_a_source_error(self) -> None:
        """A source that cannot give its blob says that with a `SourceError`, and which it is."""
        source = self.make_failing()
        with pytest.raises(SourceError) as caught, source.open() as feed:
            _read(feed)
        error = caught.value
        assert error.source == source.name, "the error names the source"
        assert error.offset >= 0, "an offset is a number of bytes"
        assert pickle.loads(pickle.dumps(error)).facts == error.facts, "its facts are plain"
        for secret in self.secrets:
            assert secret not in str(error), "the error has a secret in it"

    # What the tests share.

    def _check_head(self, feed: Feed, offset: int, content: bytes) -> None:
        assert feed.offset == offset, f"the feed begins at {feed.offset}, not {offset}"
        size = len(content) if self.tells_size else None
        assert feed.size == size, f"the feed's size is {feed.size}, not {size}"
        self._check_validator(feed.validator)

    def _check_validator(self, validator: str | None) -> None:
        assert (validator is not None) == self.has_validator, "`has_validator` says otherwise"
        assert validator is None or validator, "an empty validator says nothing"

    def _cannot_open_again(self, source: Source) -> None:
        with pytest.raises(SourceError) as caught:
            source.open().close()
        assert not caught.value.retryable, "to try again does not help"


def _read(feed: Feed) -> bytes:
    return b"".join(bytes(data) for data in feed)
