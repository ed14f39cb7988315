"""`Part`: this node's part in the flight of one digest across the cluster.

The process that leads the flight on its host has it. Its sources are wrapped: whenever the download
opens one of them, at whatever offset, the part decides anew where the bytes come from.

    open(offset)    ask the directory, which answers:
        lead        open the upstream; `lease` renews the lease meanwhile
        peers       ask them in this order; the first that has bytes gives them
        wait        nobody has bytes now: poll the peers that wait as well, or pause
        failed      the upstream failed for all: fail at once, as if it had failed here
        wrong       the node that gave bytes last has found that they are wrong: end the flight
        no answer   open the upstream: each node for itself
    a feed breaks   `AskAgain`: the download calls `open` at the offset that it has reached

So re-parenting, taking over the lead, resuming and failover need nothing of their own. Flights on
the host, takeover between its processes, and verification are what they are without a cluster.

    node B, whose parent is A               node A, which leads
    1 reads from A
                                            all its processes are killed
    2 the connection breaks: `AskAgain`
    3 asks: A is offered; it refuses
    4 asks again, accuses A: nobody else
      ranks below B, and the lease of an
      accused node is void: B leads
    5 opens the upstream at its offset;
      A's other children find B

                                            is stopped: connections open, nothing comes
    2 no byte for 2 s: `AskAgain`
    3 asks: A is offered; no answer in 2 s
    4 asks again without A: the lease has
      ended by itself, so B leads
                                            wakes up: renews, and learns that B has the lease;
                                              closes its feed, asks, gets B as its parent

                                            waits for a slow upstream: its lease is renewed
    3 A answers: nothing yet (425)
    4 polls A every second. Asks after 3 s:
      `wait`; then more and more rarely

Wrong bytes show at the end of a flight, when all of them are verified. Its readers get an error,
and their next try is right: `scripts` tells why. This is what the part does for it:

    node M lies; D is its child, E the child of D, F the child of E

    D has all bytes: `DigestMismatch`. M has verified them, or it had not given the last chunk, and
      it gave all of them: so M is to blame. The part says so before the flight ends
    E's connection breaks. It asks: `wrong`, as D has said. E has more than half of the blob from D,
      so more likely than not it has the wrong bytes, too: it ends its flight, and blames nobody
    F's connection breaks. It has less than half from E, and goes on, with other nodes: if its bytes
      are right, its readers never get an error; if they are not, it finds out at the end
    a reader tries again: a new flight, from the first byte. No flight is its parent that began
      before D has spoken, unless that has all its bytes from the upstream

If nothing came for 100 s in any of these ways, the part opens the upstream by itself: no node waits
for ever for a leader that is alive and does nothing. That is longer than a leader waits for its
upstream (`outage`, and one more try), so children do not give up first, and all are told together
that the upstream is gone. Readers that give up earlier (`stall_timeout`) go past the flight as
guests.

A process may download a digest beside the flight of its host, when it goes past a leader that hangs
(`flight/beside`), or has no room (`flight/pass_through`). Such a part is a *guest*: it is nobody's
parent and never leads, it does not ask its own node, and it goes to the upstream where others would
wait for more than 3 s.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Protocol

from shmstream.cluster.directory import Decision, Directory, DirectoryAway, Had, Me, Verdict
from shmstream.cluster.lease import Leases
from shmstream.cluster.peer import Asker, NoPeer, Trouble
from shmstream.cluster.scripts import SUSPECT_FOR, WRONG_FOR
from shmstream.errors import (
    DigestMismatch,
    FailureKind,
    SizeMismatch,
    SourceError,
    SourceFailed,
    StreamClosed,
)
from shmstream.events import EventKind
from shmstream.sources.base import AskAgain, Feed, GaveWrongBytes, Source, describe
from shmstream.sources.select import fingerprint

PATIENCE = 100.0
"""Seconds without a byte after which a node goes to the upstream by itself."""
_STALLED = 3.0  # s without a byte after which other peers are asked for, too
_POLL = 3.0  # s; how long the same peers are asked again without asking the directory
_LONGEST_POLL = 10.0  # s
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 8.0  # s; while there is nobody to ask
_BUSY_PAUSE = 0.5  # s; at most, from one question to a busy peer to the next

_log = logging.getLogger("shmstream")


class Company(Protocol):
    """What a part needs of its node."""

    directory: Directory
    leases: Leases
    asker: Asker

    def tell(self, call: Callable[[], object]) -> None:
        """Make a call of the directory in another thread."""

    def began(self, part: Part) -> None:
        """The flight of the part asks for its first bytes."""

    def moved(self) -> None:
        """The part has another parent."""

    def ended(self, part: Part) -> None:
        """The flight of the part has ended."""


class Part:
    """One flight of `key`. One thread opens; any thread may call the other methods."""

    def __init__(
        self, node: Company, key: str, address: str, *, besides: str | None = None
    ) -> None:
        """`address` is empty if this process gives nothing to peers.

        `besides` is the address of its node, for a guest.
        """
        self.is_guest: bool = besides is not None
        self._never = {f"+{besides}"} if besides else set()
        self._patience = _STALLED if self.is_guest else PATIENCE
        self._node = node
        self.key: str = key
        self.me: Me = Me(address, secrets.token_hex(8))
        self._lock = threading.Lock()  # guards the next three
        self._leads = False
        self._is_lost = False
        self._upstream_feed: Feed | None = None
        self._is_used = False
        self._validator: str | None = None  # what the upstream has told this part
        self._asked: set[str] = set()  # fingerprints of the upstreams that were asked
        self._parents: dict[str, str] = {}  # all that gave bytes -> the directory's time before
        self._whole: set[str] = set()  # those of them that gave the complete blob
        self._since_last = "0"  # the directory's time when the parent was found
        self._generation = 0  # as the directory has told it last
        self._is_fresh = True  # no bytes are of an earlier process
        self._has_own = False  # some bytes are of the upstream, or of an earlier process
        self._size: int | None = None  # of the blob, as peers have told it
        self._is_contradicted = False  # another peer, or the upstream, has told another size
        self._upstream: Source | None = None  # until it was asked for its size
        self._from_parent = 0  # bytes, since there is another parent
        self.parent: str = ""
        """Where the bytes come from: an address, `upstream`, or nothing yet."""
        self._decision: Decision | None = None  # to be used again ...
        self._use_until = 0.0  # ... until then
        self._poll = _POLL
        self._pause = _FIRST_PAUSE
        self._refused: set[str] = set()
        self._avoid: set[str] = set()
        self._silent: set[str] = set()  # holders that did not answer once
        self._waiting: list[str] = []
        self._offset = -1
        self._since = time.monotonic()  # when the offset was reached
        self._was_told = False  # that the upstream has failed
        self._has_reached = False  # the upstream has answered this part

    def source(self, upstream: Source) -> Joined:
        """`upstream`, or a node that has its bytes already."""
        return Joined(self, upstream)

    @property
    def used_peers(self) -> bool:
        """Whether some bytes came from peers."""
        return bool(self._parents)

    # Opening.

    def open(self, upstream: Source, offset: int, validator: str | None) -> Feed:
        """A feed from `offset` on, from a peer or from `upstream`.

        Raises:
            AskAgain: there was none within some seconds.
            GaveWrongBytes: the node that gave the bytes before has found that they are wrong.
            SourceError: the upstream fails.
        """
        if not self._is_used:
            self._is_used, self._upstream = True, upstream
            self._is_fresh, self._has_own = offset == 0, offset > 0
            self._node.directory.use()
            self._node.began(self)
        self._note_progress(offset)
        with self._lock:
            self._is_lost, self._upstream_feed = False, None
        if time.monotonic() - self._since > self._patience:
            level = logging.INFO if self.is_guest else logging.WARNING
            _log.log(level, "%s: nothing came from any node for %g s", self.key, self._patience)
            self._since = time.monotonic()
            return self._from_upstream(upstream, offset, validator)
        try:
            decision = self._decide(fingerprint(upstream))
        except DirectoryAway:
            return self._from_upstream(upstream, offset, validator)
        if decision.verdict is Verdict.WRONG:
            reason = f"{decision.why}, which gave them, has found that they are not the blob"
            raise GaveWrongBytes(upstream.name, offset, reason)
        if decision.verdict is Verdict.LEAD:
            self._lead()
            return self._from_upstream(upstream, offset, validator)
        has_leader = bool(decision.leader) and not self.is_guest
        if decision.verdict is Verdict.WAIT and not (has_leader or self.me.node):
            return self._from_upstream(upstream, offset, validator)
        self._stop_leading()
        if decision.verdict is Verdict.FAILED:
            return self._after_failure(upstream, offset, validator, decision.why)
        return self._from_peers(decision, offset)

    def _note_progress(self, offset: int) -> None:
        if offset > self._offset:
            self._from_parent += offset - max(self._offset, 0)
            self._offset, self._since = offset, time.monotonic()
            self._poll, self._pause = _POLL, _FIRST_PAUSE
            self._waiting.clear()
            if not self.is_guest:
                self._decision = None

    def _decide(self, source: str) -> Decision:
        """The node to ask. The directory is asked unless its last answer is still good."""
        now = time.monotonic()
        if self._decision is not None and now < self._use_until:
            return self._decision
        avoid = self._avoid | self._never
        if now - self._since > _STALLED:
            avoid.update(self._waiting)
        decision = self._node.directory.decide(
            self.key,
            self.me,
            refused=sorted(self._refused),
            avoid=sorted(avoid),
            source=source,
            had=self._had(),
        )
        if decision.verdict not in (Verdict.FAILED, Verdict.WRONG):
            if decision.generation != self._generation:
                self._waiting.clear()  # those nodes may have wrong bytes
            self._generation = decision.generation
        self._refused.clear()
        self._avoid.clear()
        if decision.verdict is Verdict.WAIT and self._waiting:
            decision = decision._replace(peers=tuple(self._waiting))
        self._decision = None
        return decision

    def _had(self) -> Had:
        """What this flight has, for the directory."""
        if not self._parents:
            return Had(None if self._is_fresh else -1)
        is_most = self._size is not None and self._from_parent * 2 >= self._size
        last = self.parent if is_most and self.parent in self._parents else ""
        return Had(self._told_generation, last, self._since_last)

    @property
    def _told_generation(self) -> int:
        """The generation of this flight; -1: it has bytes of an earlier process."""
        return self._generation if self._is_fresh else -1

    def _set_parent(self, parent: str) -> None:
        if parent != self.parent:
            self.parent, self._from_parent = parent, 0
            self._node.moved()

    # From the upstream.

    def _lead(self) -> None:
        with self._lock:
            self._leads = True
        if self.parent != "upstream":
            _log.info("%s: this node pulls it for the cluster", self.key)
        self._node.leases.hold(self)

    def _stop_leading(self) -> None:
        with self._lock:
            self._leads = False
        self._node.leases.release(self)

    def _from_upstream(self, upstream: Source, offset: int, validator: str | None) -> Feed:
        """The upstream's own feed. A validator that it has not told is not for it."""
        self._asked.add(fingerprint(upstream))
        self._set_parent("upstream")
        known = validator if validator is not None and validator == self._validator else None
        feed = upstream.open(offset, known)
        if self._differs(feed):  # the download asks again: this may be a page
            self._is_contradicted = True
        self._validator, self._has_reached, self._has_own = feed.validator, True, True
        with self._lock:
            if not self._is_lost:
                self._upstream_feed = feed
                return feed
        feed.close()
        raise AskAgain(upstream.name, offset, "another node has the lease by now")

    def _after_failure(
        self, upstream: Source, offset: int, validator: str | None, why: str
    ) -> Feed:
        """The upstream has failed for the leader.

        If the leader could never even reach it, that may be the leader's own trouble: then this
        node tries once, too.
        """
        was_told, self._was_told = self._was_told, True
        reason, status, kind, was_reached = _failure(why)
        if kind.is_without_connection and not (was_reached or was_told):
            try:
                return self._from_upstream(upstream, offset, validator)
            except SourceError as error:
                error.retryable = False
                raise
        reason = f"it failed for another node: {reason}"
        raise SourceError(upstream.name, offset, reason, False, status=status, kind=kind)

    def lose(self) -> None:
        """Another node has the lease: close the upstream's feed."""
        with self._lock:
            if not self._leads:
                return
            self._leads, self._is_lost = False, True
            feed = self._upstream_feed
        _log.info("%s: another node pulls it for the cluster by now", self.key)
        self._node.leases.release(self)
        if feed is not None:
            feed.close()

    # From peers.

    def _from_peers(self, decision: Decision, offset: int) -> Feed:
        busy: list[str] = []
        for each in decision.peers:
            peer, is_whole = each.removeprefix("+"), each.startswith("+")
            try:
                feed = self._node.asker.ask(peer, self.key, offset, whole=is_whole)
            except NoPeer as error:
                self._note_trouble(peer, error, is_whole=is_whole)
                if error.trouble is Trouble.BUSY:
                    busy.append(each)
                if error.trouble is Trouble.WAITING and peer == decision.peers[0]:
                    break  # it is the parent, and the others are not ahead of it
            else:
                self._set_parent(peer)
                self._note_parent(peer, decision.at, is_whole=is_whole)
                self._require_same_size(feed, peer)
                self._size = feed.size
                if self.is_guest:  # it may ask for one piece after another
                    self._reuse(decision, (each,))
                return feed
        if self._refused:
            self._decision = None  # the directory knows another one
        elif self._waiting:
            self._reuse(decision, tuple(self._waiting))
        elif busy:
            self._reuse(decision, tuple(busy))
            time.sleep(min(self._pause, _BUSY_PAUSE))
            self._pause = min(self._pause * 3, _LONGEST_PAUSE)
        else:
            time.sleep(self._pause)
            self._pause = min(self._pause * 3, _LONGEST_PAUSE)
        raise AskAgain("the cluster", offset, "no node has more bytes yet")

    def _require_same_size(self, feed: Feed, peer: str) -> None:
        """Raises `GaveWrongBytes`: the peers before have told another size. Nobody is believed."""
        if self._differs(feed):
            feed.close()
            self._is_contradicted = True
            reason = f"it has {feed.size} bytes, and the node before it has told {self._size}"
            raise GaveWrongBytes(peer, feed.offset, reason)

    def _differs(self, feed: Feed) -> bool:
        """Whether it tells another size than the peers before it."""
        return None not in (self._size, feed.size) and feed.size != self._size

    def is_lie(self, size: int) -> bool:
        """Whether a peer has told this size, and the upstream tells another one; it is asked now.

        If so, the next `open` asks others. For a size that this host has no room for.
        """
        upstream, self._upstream = self._upstream, None
        if self.parent not in self._parents or upstream is None:
            return False
        try:
            told = describe([upstream])
        except Exception as error:  # noqa: BLE001  it may be the user's own
            _log.debug("%s: its upstream does not tell its size: %s", self.key, error)
            return False
        if told is None or told.size in (None, size):
            return False
        _log.warning(
            "%s: peer %s has told %d bytes, and the upstream has %d",
            self.key, self.parent, size, told.size,
        )  # fmt: skip
        del self._parents[self.parent]
        self._refused.add(self.parent)
        self._size = self._decision = None
        return True

    def _reuse(self, decision: Decision, peers: tuple[str, ...]) -> None:
        """Ask these peers again for a while, without the directory."""
        self._decision = decision._replace(verdict=Verdict.PEERS, peers=peers)
        if time.monotonic() >= self._use_until:
            self._use_until = time.monotonic() + self._poll
            self._poll = min(self._poll * 1.5, _LONGEST_POLL)

    def _note_parent(self, peer: str, at: str, *, is_whole: bool) -> None:
        self._parents.setdefault(peer, at)
        self._since_last = at
        if is_whole:
            self._whole.add(peer)

    def _note_trouble(self, peer: str, error: NoPeer, *, is_whole: bool) -> None:
        trouble = error.trouble
        if trouble is not Trouble.WAITING and peer in self._waiting:
            self._waiting.remove(peer)
        if trouble is Trouble.WAITING:
            if peer not in self._waiting:
                self._waiting.append(peer)
        elif trouble in (Trouble.GONE, Trouble.DEAD):
            self._refused.add(peer)
        elif trouble is Trouble.SILENT and is_whole and peer not in self._silent:
            self._silent.add(peer)  # it has the blob: perhaps it is only slow
        elif trouble is Trouble.SILENT and not is_whole:
            self._avoid.add(peer)  # unless it has the blob by now: else we would be told to lead
        elif trouble is not Trouble.BUSY:  # if all were avoided, we would be told to lead
            self._avoid.add(f"+{peer}")
        is_strange = trouble in (Trouble.REFUSED_US, Trouble.UNTRUSTED)
        level = logging.WARNING if is_strange else logging.DEBUG
        _log.log(level, "%s: peer %s: %s", self.key, peer, error)

    # The end.

    def ended(self, error: BaseException | None) -> None:
        """The flight has ended, with the complete blob if `error` is None.

        Does not wait, unless it has failed for all nodes, or got wrong bytes. Then the directory is
        to know that before the children do, or one of them would be told to lead:

            leader                                   child
            aborts: its endpoint answers 404
                                                     asks: the leader has gone, so lead
            tells that the upstream has failed       tries all over again, and so does the next
        """
        self._stop_leading()
        self._node.ended(self)
        if not self._is_used:
            return
        self._is_used = False
        how, text = self._farewell(error)
        directory, key, me = self._node.directory, self.key, self.me
        generation = self._told_generation

        def leave() -> None:
            try:
                if me.node or how == "wrong":
                    directory.leave(key, me, how, text, generation)
            except DirectoryAway:
                pass  # what is not told is found out by those who ask this node
            finally:
                directory.let_go()

        if how in ("failed", "wrong"):
            leave()
        else:
            self._node.tell(leave)

    def _farewell(self, error: BaseException | None) -> tuple[str, str]:
        """How the flight has ended, in the words of `scripts.LEAVE`."""
        if error is None:
            return "complete", ""
        if isinstance(error, StreamClosed):
            return "handed over", ""
        is_misled = self._is_contradicted and isinstance(error, SourceFailed)
        if is_misled or isinstance(error, DigestMismatch | SizeMismatch):
            return "wrong", self._blame(error)
        is_for_all = isinstance(error, SourceFailed) and _is_for_all(error)
        if not isinstance(error, SourceFailed) or not is_for_all or self._was_told:
            return "over", ""
        facts = {
            "tried": sorted(self._asked),
            "kind": str(error.kind),
            "status": error.status,
            "reason": error.reason[:500],
            "reached": self._has_reached,
        }
        return ("failed", json.dumps(facts)) if self._asked else ("over", "")

    def _blame(self, error: BaseException) -> str:
        """Which nodes may have given wrong bytes, in the words of `scripts.LEAVE`.

        A parent that gave the last chunk, or a complete blob, has verified what it has. If it gave
        all, it is to blame. If others gave a part, it is a suspect. The others knew as little as
        this node, and are not asked by this node again.
        """
        is_told = isinstance(error, DigestMismatch) and not error.got
        if is_told and not self._is_contradicted:
            return ""  # the parent is deceived, and has said so
        is_sure = len(self._parents) == 1 and not self._has_own
        is_sure = is_sure and isinstance(error, DigestMismatch) and not self._is_contradicted
        blamed = []
        for peer, since in sorted(self._parents.items()):
            has_verified = peer == self.parent or peer in self._whole
            seconds = WRONG_FOR if is_sure else SUSPECT_FOR if has_verified else 0
            blamed.append(f"{peer}|{since}|{seconds}")
        return " ".join(blamed)


def _failure(why: str) -> tuple[str, int | None, FailureKind, bool]:
    """What another node has told: the reason, the status, the kind, and if it got an answer."""
    try:
        facts = json.loads(why)
        status = facts["status"]
        kind, was_reached = FailureKind(facts["kind"]), facts.get("reached") is True
        return str(facts["reason"]), status and int(status), kind, was_reached
    except (ValueError, LookupError, TypeError, AttributeError):
        return "it does not say why", None, FailureKind.BROKEN, True


def _is_for_all(error: SourceFailed) -> bool:
    """Whether the upstream fails for every node; a refusal belongs to one repository."""
    if error.status is not None:
        return error.status == 429 or error.status >= 500
    return error.kind.is_timeout or error.kind.is_without_connection


class Joined:
    """A source whose bytes come from its upstream or from another node, as the part decides."""

    def __init__(self, part: Part, upstream: Source) -> None:
        self._part = part
        self._upstream = upstream
        self.name: str = upstream.name

    def open(self, offset: int = 0, validator: str | None = None) -> Feed:
        """See `Source.open`."""
        return self._part.open(self._upstream, offset, validator)

    @property
    def is_live(self) -> bool:
        """Whether bytes may come slowly: those of a peer come as fast as its own upstream's."""
        is_from_peer = self._part.parent not in ("", "upstream")
        return is_from_peer or bool(getattr(self._upstream, "is_live", False))

    @property
    def receives(self) -> EventKind:
        """What bytes count as."""
        is_from_peer = self._part.parent not in ("", "upstream")
        return EventKind.FROM_PEER if is_from_peer else EventKind.RECEIVED
