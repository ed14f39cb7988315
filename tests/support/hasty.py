"""Short pauses between tries, in each interpreter of a server, imported as it begins.

The server tries as often as usual. A test of an upstream that fails waits for the tries, not for
the pauses. A folder of `PYTHONPATH` has a `sitecustomize.py` that imports this module (`HASTY` of
`registries`). Servers that tests start for themselves pause as for users.
"""

from __future__ import annotations

from shmstream.sources.retries import Retries
from shmstream.upstreams import questions

Retries.__init__.__defaults__ = (8, 2, 0.01, 0.05, *(Retries.__init__.__defaults__ or ())[4:])
questions._PAUSES = (0.01, 0.04)
