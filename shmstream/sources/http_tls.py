"""`TLS`: which servers an HTTP source trusts, and which certificate it shows them.

What a user says of one server is for that server, and for what it leads to:

    cafile                 authorities that are trusted beside those of the system: also for the
                           servers that a redirect or a challenge leads to
    insecure               no certificate is checked, neither there nor where a redirect leads
    certfile, keyfile      are shown to the server itself, and to no other one
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class TLS:
    """How to speak TLS with a server. Paths name files in PEM; `keyfile` may be in `certfile`."""

    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    insecure: bool = False

    def for_others(self) -> Self:
        """The same for servers that this one leads to: they see no certificate."""
        return replace(self, certfile=None, keyfile=None)

    def context(self) -> ssl.SSLContext:
        """A context for clients. Reads the files.

        Raises:
            OSError: a file cannot be read, or is not what it should be (`ssl.SSLError`).
        """
        context = ssl.create_default_context()
        if self.cafile is not None:
            context.load_verify_locations(self.cafile)
        if self.certfile is not None:
            context.load_cert_chain(self.certfile, self.keyfile, password=_no_password)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


USUAL_TLS = TLS()
"""The system's authorities, and no certificate."""


def _no_password() -> str:
    """A key that is encrypted is an error: OpenSSL would ask for its password on a terminal."""
    return ""
