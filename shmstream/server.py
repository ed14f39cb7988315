"""`shmstream.server:Protocol`, for `uvicorn --http`: uvicorn's HTTP/1.1 with zero-copy bodies."""

from shmstream.asgi.protocol import Protocol

__all__ = ["Protocol"]
