"""`LastWords`: what a leader says whose sources have failed, before readers are told so.

If a reader in another process has other sources, the leader does not abort. It stores its last
words in the control block, in the place of an error, and hands the stream over:

    leader L                reader F, which has another source      reader G, which has L's sources
    1 stores its words
    2 frees the lock, rings
                            3 finds no leader; reads the words;     3 finds no leader; reads the
                              has a source that was not tried         words; has no other source;
                            4 takes the lock, removes the words,      sees that F's crew is another
                              leads at the same offset              4 waits, at most 10 s
                                                                    5 finds a leader, and follows

    F is stopped, or does not read just now: after 10 s G takes the lock, and aborts with the words.
    F, when it wakes, finds the stream aborted, and raises the same error as everybody.

    F is killed before it takes the lock: G does not see its crew any more, and aborts at once.

    F is killed later: there are no words any more. All is as after the death of any leader.

    F's source fails, too: F is the leader now, with the words of L and its own. What was tried
    grows each time, so this ends.

    L's process joins again, as G does: its readers have no other source.

    A process that finds that all its sources were tried, though its crew is another one, stores 0
    as its crew: then two such processes do not wait for each other.

    G aborts while H, another reader, still looks for the stream: the name is gone. H looks at the
    stream that it had: it is aborted. So H raises the error, and does not begin a flight of its own
    with the same sources.

If no reader has another crew, the leader aborts at once: nobody waits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from shmstream.errors import BlobAborted

_MOST = 24  # sources, and crews, that are told; a source that is not told may be tried once more


@dataclass(frozen=True)
class LastWords:
    """Why a leader gave up, and what was tried for the flight so far.

    `tried` has the fingerprints of sources, `crews` the numbers of processes (see `offers`).
    `first` is the source that told the size, as a hash of its name; empty if it is not known.
    """

    error: BlobAborted
    tried: frozenset[str]
    crews: frozenset[int]
    first: str = ""

    def to_text(self, limit: int) -> bytes:
        """At most `limit` bytes; an overlong reason loses its end."""
        facts = {
            "tried": sorted(self.tried)[:_MOST],
            "crews": sorted(self.crews)[:_MOST],
            "first": self.first,
        }
        head = json.dumps(facts).encode() + b"\n"
        return head + self.error.to_text(limit - len(head))

    @classmethod
    def from_text(cls, text: bytes) -> LastWords | None:
        """The words that `to_text` wrote; None from any other text."""
        head, _, error = text.partition(b"\n")
        try:
            facts = json.loads(head)
            tried = frozenset(str(each) for each in facts["tried"])
            crews = frozenset(int(each) for each in facts["crews"])
            return cls(BlobAborted.from_text(error), tried, crews, str(facts.get("first", "")))
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
