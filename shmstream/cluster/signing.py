"""Requests of nodes to each other: signed with the secret of the cluster, fresh, and never twice.

    shmstream-peer        which node asks
    shmstream-to          which node is asked: a request to one is of no use at another
    shmstream-time        seconds since 1970
    shmstream-nonce       128 random bits
    shmstream-signature   HMAC-SHA256 of all that, of method and path, of `Range`, and of what is
                          wanted, with the secret

A request is refused that lacks one of these, is signed with another secret, is meant for another
node, is older or younger than 60 s, or was seen before. What was seen is noted for all processes of
a node, in the folder of its store:

    <store>/cluster/nonces/<minute>/<nonce>    made with O_EXCL, so only one process can make it

Where the folder cannot be written to, each process notes what it has seen itself.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

FRESH = 60.0
"""Seconds by which the clocks of two nodes may differ, and a request may be late."""
_MINUTE = 60
_SIGNED = ("shmstream-peer", "shmstream-to", "shmstream-time", "shmstream-nonce")
_WANTED = ("range", "shmstream-want")
_NONCE = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"\d{1,12}\.\d{1,6}", re.ASCII)
_LEAST = 16  # bytes


def check_secret(secret: str | bytes) -> bytes:
    """The secret as bytes.

    Raises:
        ValueError: it is too short to keep anybody out.
    """
    key = secret.encode() if isinstance(secret, str) else bytes(secret)
    if len(key) < _LEAST:
        raise ValueError(f"has at least {_LEAST} bytes, not {len(key)}")
    return key


def sign(
    secret: bytes, method: str, path: str, me: str, to: str, wanted: Mapping[str, str]
) -> dict[str, str]:
    """The headers of a request: `wanted` (Range and so on), and what proves it."""
    headers = {
        **wanted,
        "shmstream-peer": me or "-",
        "shmstream-to": to,
        "shmstream-time": f"{time.time():.6f}",
        "shmstream-nonce": secrets.token_hex(16),
    }
    headers["shmstream-signature"] = _signature(secret, method, path, headers)
    return headers


def _signature(secret: bytes, method: str, path: str, headers: Mapping[str, str]) -> str:
    signed = [method, path, *(headers.get(name, "") for name in (*_SIGNED, *_WANTED))]
    return hmac.new(secret, "\n".join(signed).encode(), hashlib.sha256).hexdigest()


class Guard:
    """Decides which requests to the node `me` are answered. For any thread."""

    def __init__(self, secret: bytes, me: str, folder: str) -> None:
        """`folder` is the store's."""
        self._secret = secret
        self._me = me
        self._folder = os.path.join(folder, "cluster", "nonces")
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}  # nonce -> when it is forgotten
        self._tidied = 0

    def objection(self, method: str, path: str, headers: Mapping[str, str]) -> str | None:
        """Why a request is not answered; None if it is. The same request is answered once."""
        if any(name not in headers for name in (*_SIGNED, "shmstream-signature")):
            return "it is not signed"
        good = _signature(self._secret, method, path, headers)
        if not hmac.compare_digest(good.encode(), headers["shmstream-signature"].encode()):
            return "it is signed with another secret"
        told, nonce = headers["shmstream-time"], headers["shmstream-nonce"]
        if not (_NONCE.fullmatch(nonce) and _TIME.fullmatch(told)):
            return "its time or its nonce is none"
        if (late := time.time() - float(told)) > FRESH:
            return f"it is {late:.0f} s old: is the clock of that node right, and ours?"
        if late < -FRESH:
            return f"it comes {-late:.0f} s too early: is the clock of that node right, and ours?"
        if headers["shmstream-to"] != self._me:
            return f"it is meant for {headers['shmstream-to'][:100]!r}, and this is {self._me}"
        return None if self._is_first(nonce, float(told)) else "it was seen before"

    def _is_first(self, nonce: str, told: float) -> bool:
        now = time.time()
        with self._lock:
            self._seen = {each: end for each, end in self._seen.items() if end > now}
            if nonce in self._seen:
                return False
            self._seen[nonce] = now + 2 * FRESH
        minute = int(told) // _MINUTE
        self._tidy(int(now) // _MINUTE)
        folder = os.path.join(self._folder, str(minute))
        for _ in range(2):
            try:
                fd = os.open(os.path.join(folder, nonce), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileNotFoundError:
                with suppress(OSError):
                    os.makedirs(folder, mode=0o700, exist_ok=True)
            except FileExistsError:
                return False
            except OSError:  # a store that cannot be written to
                return True
            else:
                os.close(fd)
                return True
        return True

    def _tidy(self, minute: int) -> None:
        """Remove what is too old to be believed anyway, once a minute."""
        if self._tidied == minute:
            return
        self._tidied = minute
        with suppress(OSError):
            for name in os.listdir(self._folder):
                if not name.isdigit() or int(name) < minute - 3:
                    shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
