"""The user's netrc file, which has names and passwords for hosts, as curl and git read it."""

from __future__ import annotations

import logging
import netrc
import os

_log = logging.getLogger("shmstream")


def login_for(host: str | None) -> tuple[str, str] | None:
    """User and password for a host, from `$NETRC` or else `~/.netrc`; None if there are none.

    A file that cannot be read, or has an error in it, is as none; a warning tells it.
    """
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    if host is None or not os.path.isfile(path):
        return None
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
        _log.warning("%s is not used: %s", path, str(error))
        return None
    if found is None or not found[0] or not found[2]:
        return None
    return found[0], found[2]
