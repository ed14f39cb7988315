"""One listing of `/dev/shm`: the names of all that looks like a part of a stream.

Other programs may have very many files there, and each of them makes a listing take longer. So no
step in the life of a stream lists the folder: names are derived from keys, or remembered in blocks.
Only `sweep`, `check`, `gc` and what shows all streams list it. Each listing serves segments and
doorbells together.

A listing is no picture of one moment. What is there from its beginning to its end is in it; what
comes or goes meanwhile may be in it or not. So a doorbell may be in it without its stream, although
a stream is older than its doorbells:

    process that lists                    process that writes      process that reads
    1 passes the place of the segment
                                          makes the segment
                                                                   attaches, makes its doorbell
    2 finds the doorbell

So a process that finds a doorbell without a stream lists again before it removes or reports it: if
the stream is not there either, it has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

FOLDER = "/dev/shm"
"""Where the system has shared memory and semaphores."""

SEGMENT = "shms-"
"""What the names of segments begin with; `mapping` knows it, too."""

DOORBELL = "shmd-"
"""What the names of doorbells begin with; glibc puts `sem.` before it, musl does not."""

_OURS = tuple(each.encode() for each in (SEGMENT, DOORBELL, f"sem.{DOORBELL}"))


def listing() -> list[str]:
    """The names of all files of whatever user and kind that are named like ours, in no order."""
    # As bytes, because to decode the names of all other files takes as long as to list them.
    found = os.listdir(os.fsencode(FOLDER))
    return [os.fsdecode(each) for each in found if each.startswith(_OURS)]


def ours(prefix: str, among: Iterable[str] | None) -> Iterator[tuple[str, str, bool]]:
    """What this user has whose name begins with `prefix`: its path, its name, whether it is a file.

    `among`: a listing that the caller has; else this lists the shared memory of the host.
    """
    for each in listing() if among is None else among:
        name = each.removeprefix("sem.")  # glibc adds that to the names of semaphores
        path = f"{FOLDER}/{each}"
        if name.startswith(prefix) and (facts := facts_of(path)) is not None:
            yield path, name, stat.S_ISREG(facts.st_mode)


def facts_of(path: str) -> os.stat_result | None:
    """What lies at `path`, if this user owns it; a link is not followed."""
    try:
        facts = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return facts if facts.st_uid == os.geteuid() else None
