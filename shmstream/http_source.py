"""`HTTPSource`, by its public path; it needs the extra `http`."""

from shmstream.sources.http import HTTPSource

__all__ = ["HTTPSource"]
