"""`Reference`: how people write an image: `debian:12`, `ghcr.io/org/app@sha256:...`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shmstream.stream.digest import is_digest

_HUB = "docker.io"
_REFERENCE = re.compile(r"(?P<name>[^@:\s]+?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>\S+))?")


@dataclass(frozen=True)
class Reference:
    """How people write an image; the tag or digest is None if they wrote none."""

    name: str
    reference: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """From `debian`, `debian:12`, `host:5000/team/app@sha256:...`; with a digest no tag counts.

        Raises:
            ValueError: it is no image.
        """
        host, slash, rest = text.strip().removeprefix("docker://").partition("/")
        if not slash:
            host, rest = "", host
        found = _REFERENCE.fullmatch(rest)
        digest = None if found is None else found["digest"]
        if found is None or (digest is not None and not is_digest(digest)):
            raise ValueError(f"{text[:200]!r} is no image, such as docker.io/library/debian:12")
        return cls(f"{host}{slash}{found['name']}", digest or found["tag"])

    @property
    def names(self) -> tuple[str, ...]:
        """The full names that it may mean: at Docker Hub names are written without a host."""
        return (self.name, f"{_HUB}/{self.name}", f"{_HUB}/library/{self.name}")
