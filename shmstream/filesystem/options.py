"""Options of the file system: what each may be, and which are refused.

An option that is ignored in silence may mean another content, or no access. So options that mean
nothing here are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from shmstream.storage.folder import default_folder
from shmstream.store import Store
from shmstream.stream.digest import is_digest

_HINTS = {  # of how to read
    "block_size", "cache_options", "cache_type", "default_cache", "fill_cache", "size",
}  # fmt: skip
_OF_FSSPEC = {
    "asynchronous", "batch_size", "fo", "listings_expiry_time", "loop", "max_paths",
    "use_listings_cache",
}  # fmt: skip


def make_store(folder: str | os.PathLike[str] | None, max_bytes: int | None) -> Store:
    """The store in `folder`; None is the user's own."""
    folder = default_folder() if folder is None else os.path.expanduser(folder)
    return Store(folder, max_bytes=max_bytes)


def seconds(expiry: float | str) -> float:
    """A number of seconds, which comes as text from the environment.

    Raises:
        ValueError: it is none, or negative.
    """
    try:
        number = float(expiry)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not number >= 0:
        raise ValueError(f"expiry is a number of seconds, not {expiry!r}")
    return number


def refuse_unknown(options: Iterable[str], protocol: str | None) -> None:
    """Refuse options that are not of this file system; probably they are the target's.

    Raises:
        TypeError: there are such options.
    """
    if unknown := sorted(set(options) - _OF_FSSPEC):
        of = protocol or "its protocol"
        raise TypeError(
            f"shmstream:: has no option {', '.join(unknown)}; options of the target are given "
            f"under its protocol, such as {of}={{{unknown[0]!r}: ...}}"
        )


def refuse_options(options: Iterable[str]) -> None:
    """Refuse options with which another content would be read, such as `version_id`.

    Raises:
        TypeError: there are such options.
    """
    if unknown := sorted(set(options) - _HINTS):
        raise TypeError(
            f"a file of shmstream:: is read without the option {', '.join(unknown)}: give it to "
            "the target if that has it, or read with the target"
        )


def digests(check: str | Mapping[str, str] | None, strip: Callable[[str], str]) -> dict[str, str]:
    """The digest of each path that has one; of "" for all paths.

    Raises:
        ValueError: one is no digest.
    """
    given = {"": check} if isinstance(check, str) else dict(check or {})
    for digest in given.values():
        if not isinstance(digest, str) or not is_digest(digest):
            raise ValueError(
                "check is sha256: and 64 lower-case hex digits, sha512: and 128, or a mapping "
                f"from paths to these, unlike {digest!r}"
            )
    return {strip(path) if path else "": each for path, each in given.items()}
