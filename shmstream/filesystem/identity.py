"""Which content a file of the target has now, and the key of its blob in the store.

The key has two parts. People read the first, the URL without what may be secret. The second is a
hash of everything that tells one content from another:

    the URL            as a whole
    the place          options of the target such as an endpoint or a user name, without those that
                       are credentials: each process asks the target with its own credentials what
                       the content is, so the target has allowed it to each process
    the validator      what the target says of the content (`sources/fsspec.look`)

So a file that was changed has another key, and its blob is another blob. A file whose target says
nothing that changes with the content has one key only, and `system` uses its blob for a limited
time.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fsspec.spec import AbstractFileSystem

from shmstream.sources.base import public
from shmstream.sources.fsspec import look

_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|auth|key|cookie|cert|signature", re.I
)
_NO_PLACE = {
    "asynchronous", "batch_size", "get_client", "listings_expiry_time", "loop", "max_paths",
    "session", "skip_instance_cache", "use_listings_cache",
}  # fmt: skip
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Version:
    """One content of one file.

    `key` is the key of its blob, `size` its bytes if the target tells them. `validator` is None if
    the target says nothing that changes with the content.
    """

    key: str
    size: int | None
    validator: str | None


class Identities:
    """Asks the target which content its files have, for each file at most every `expiry` seconds.

    Any thread may call it. `system` gives the target of this process.
    """

    def __init__(self, system: Callable[[], AbstractFileSystem], expiry: float) -> None:
        self._system = system
        self._expiry = expiry
        self._place = _place(system())
        self._lock = threading.Lock()  # guards `_known`
        self._known: dict[str, tuple[float, Version]] = {}

    def known(self, path: str) -> Version | None:
        """The last answer, if it is not older than `expiry`."""
        with self._lock:
            asked, version = self._known.get(path, (float("-inf"), None))
            return version if time.monotonic() - asked < self._expiry else None

    def ask(self, path: str) -> Version:
        """What the target says now. Blocks for its answer.

        Raises:
            FileNotFoundError: there is no such file.
            IsADirectoryError: `path` is a directory.
            Exception: as `info` of the target.
        """
        asked = time.monotonic()
        system = self._system()
        seen = look(system, path)
        version = Version(self._key(system, path, seen.validator), seen.size, seen.validator)
        if self._expiry > 0:
            with self._lock:
                self._known[path] = asked, version
        return version

    def forget(self, path: str | None = None) -> None:
        """Forget what was said of a file; None: of all."""
        with self._lock:
            if path is None:
                self._known.clear()
            else:
                self._known.pop(path, None)

    def _key(self, system: AbstractFileSystem, path: str, validator: str | None) -> str:
        url = str(system.unstrip_protocol(path))
        facts = json.dumps([url, self._place, validator])
        return f"{public(url)} {hashlib.sha256(facts.encode()).hexdigest()[:32]}"


def name_of(system: AbstractFileSystem, path: str) -> str:
    """What people and logs call a file."""
    return public(str(system.unstrip_protocol(path)))


def _place(system: AbstractFileSystem) -> str:
    """What tells the target from other targets, whose files may have the same URLs."""
    try:
        arguments = _plain(list(system.storage_args))
        options = _plain(dict(system.storage_options))
    except TypeError:  # an option is an object: another process cannot know that it has the same
        return uuid.uuid4().hex
    return json.dumps([arguments, options], sort_keys=True)


def _plain(value: object) -> object:
    """`value` without credentials, for JSON.

    Raises:
        TypeError: it has an object in it that is no text, number, list or mapping.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        plain = {
            str(name): _plain(each)
            for name, each in value.items()
            if name not in _NO_PLACE and not _SECRET.search(str(name))
        }
        return {name: each for name, each in plain.items() if each not in ({}, None)}
    if isinstance(value, AbstractFileSystem):
        return [type(value).__qualname__, _place(value)]
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not plain")
