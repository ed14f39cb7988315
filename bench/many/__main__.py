"""What it costs that there are many: files of others in /dev/shm, blobs in a store.

    python -m bench.many [--json FILE] [--docs PAGE] [--rounds 5] [--only SECTION ...] [--quick]
                         [--dir FOLDER]

Every figure stands beside the same work with few, in the same run, in an order that alternates.

    crowd   crowd.py   a flight, and an attach, with 50,000 other files in /dev/shm and with none
    store   store.py   opening, listing, checking and evicting 100,000 blobs, and 100
    flights server.py  1,000 flights at once of a server, and 50
    clients server.py  2,000 clients of one flight of a server, and one

All files are made by the measurement, and removed again. The table says whether each goal is met.
With `--quick` everything is tried and nothing is meant.
"""

from __future__ import annotations

import sys

from bench.command import Command, Count, run
from bench.many import crowd, server, store

SECTIONS = {
    "crowd": crowd.measure,
    "store": store.measure,
    "flights": server.flights,
    "clients": server.clients,
}


def main() -> int:
    """Measure, print the table, write the JSON; the exit code."""
    command = Command(__doc__, {"rounds": Count(5, 1, "of each pair of measurements")})
    command.has_sections(SECTIONS)
    return run("bench.many", command.parse(), lambda _options, _stack: SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
