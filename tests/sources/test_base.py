"""What all sources share."""

from __future__ import annotations

import pytest

from shmstream.sources.base import public


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@host:1/a/b?x=1&y=2&z#f", "https://host:1/a/b?x=***&y=***&***"),
        ("http://host", "http://host"),
        ("http://host?secret", "http://host?***"),
        ("s3://key:secret@bucket/a@b", "s3://bucket/a@b"),
        ("zip://x@y::ftp://me:pass@host/a", "zip://y::ftp://host/a"),
        ("http://me:pass@[/a?b", "http://***"),
    ],
)
def test_names_have_no_credentials(url: str, shown: str) -> None:
    assert public(url) == shown
