"""Writes the pages that are made from tables in the code: run `make docs`.

docs/protocol.md               all of it, from `shmstream.stream.control_block`, the table of
                               connections of `shmstream.registry.server`, and the counts of
                               tools/models/counts.md
docs/operations.md             its table of metrics, from `shmstream.registry.ops.metrics`
docs/wings.svg                 the picture of the table of wings in docs/ARCHITECTURE.md

The pages cannot drift from the code: tests compare them with what this program makes.
"""

from __future__ import annotations

import re
from pathlib import Path

from shmstream.registry.ops.metrics import METRICS
from shmstream.registry.server import connections
from shmstream.stream import control_block
from shmstream.stream.control_block import (
    HEADER_SIZE,
    SLOT_SIZE,
    TERMINAL,
    TRANSITIONS,
    Block,
    Slot,
    State,
    Text,
    fields_of,
)
from tools.models.bounds import MODELS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "protocol.md"
OPERATIONS = DOCS / "operations.md"
ARCHITECTURE = DOCS / "ARCHITECTURE.md"
WINGS = DOCS / "wings.svg"
COUNTS = Path(__file__).with_name("models") / "counts.md"

_STEP = 34  # from one box to the next
_ZONES = {
    "ground": {"system", "errors"},
    "core": {"stream", "sources", "storage"},
    "flight": {"flight", "store", "__init__"},
}
_COLOURS = {"ground": "#e9ecef", "core": "#cfe2f3", "flight": "#fbe3c2", "servers": "#d8eedd"}
_PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="Helvetica, Arial, sans-serif" font-size="13" role="img" aria-label="The wings of shmstream, from the command line at the top to errors, events and units on the ground">
  <!-- Made by `make docs` from the table of wings in ARCHITECTURE.md. Change that, not this. -->
  <rect width="760" height="{height}" fill="#ffffff"/>
  <g fill="#222">
{boxes}
  <text x="10" y="{below}" font-size="12" fill="#555">A wing imports only wings below it.</text>
  </g>
</svg>
"""

_PAGE = """\
# The protocol

<!-- Made by `make docs` from shmstream/stream/control_block.py. Change that, not this. -->

One stream is a partial file, a control block in shared memory, and one POSIX semaphore for each
reader. This page is everything that a program in any language needs to read along.

| what | where | which process holds the kernel lock |
| --- | --- | --- |
| the blob, while it arrives | `<path>.shmstream-partial` | the writer, on the whole file |
| the blob, once committed | `<path>`, the same inode | none |
| the control block | POSIX shared memory `/shms-<name>` | the writer, on the header; each reader, on its slot |
| a reader's doorbell | POSIX semaphore `/shmd-<token, 12 hex>.<slot, hex>.<generation, hex>` | |

Locks are open-file-description locks (`F_OFD_SETLK`) on exactly the bytes that their holder
writes. The kernel frees a lock when its holder ends, however it ends: **a writer is alive if and only
if a process holds the lock on the header**, and a reader if and only if a process holds the lock on
its slot.

## Invariants

{invariants}

## States

```mermaid
stateDiagram-v2
    [*] --> {first}
{transitions}
```

{terminal} never change. *Orphaned* is observed, and not stored: the state is neither of
these, and no process holds the lock on the header. Another writer may take an orphaned stream over;
then the stream goes on.

## The control block

{header_size} bytes of header, then one 8-byte membership word for each slot, then {slot_size} bytes
for each slot. Words are 64-bit, aligned, in host byte order, and stored and loaded with one machine
instruction. A text is a word with its number of bytes, then the bytes.

### Header

{header}

### Slot

{slot}

The membership word of a slot is `generation << 8 | active`. Its reader stores it: as active once
the doorbell exists and the slot is filled, as free when it leaves.

## Sync points

| when | what, in this order |
| --- | --- |
| create | make the segment, lock the header, check that its name still leads to it; store the path; make the partial file, lock it, check its name; store everything else, then the magic |
| publish | write all bytes to the file; store `published`, `chunk_count`, `progress`; post every doorbell |
| commit | verify size and digest; rename the file; store `size`, `published`, `chunk_count`; store COMMITTED; post |
| abort | store `error`; store ABORTED; post; unlink the partial file |
| subscribe | lock a slot; unlink the doorbell of the generation that it names; store the next generation, not active; create its doorbell, under its own name from the beginning; fill the slot; store the membership; load `published` again before the first wait |
| read | load `published`; if it is not enough, load `state`; if that is terminal, **load `published` again** and conclude; look at the lock on the header at least four times a second, after a wait that took a post without new bytes or more than one post, and when the writer's process has ended (its pidfd is readable: a thread of the reader's process then posts the reader's own doorbell); wait for a post, at most 250 ms, and take all posts that have come; begin again |
| take a slot over | its lock is free although it is active: subscribe as ever |
| hand over | publish; close the partial file; unlock the header; post: readers look at the lock; reap if no process has a slot any more |
| succeed | lock the header of an orphaned stream, check the name and that it is not terminal; lock the partial file, check that it is the file that the block names; keep all its bytes, unless it is longer than `size`: then cut it to `published`; store the identity of the new writer and `epoch` + 1; post all readers at the next publish |
| reap | lock byte 0, check the name; unlink partial file (unless `resumable`) and doorbells, the segment last |

## The models

`tools/models/stream.pml` is the life of one stream as a model for [spin](https://spinroot.com), which
tries every order of steps: publish, wait, subscribe, unsubscribe, succeed, commit, abort, hand over,
reap. Each load and each store of the control block is one step, in the order of the code, and so is
each call of the kernel that another process can notice. A process may be killed between any two
steps. Then the kernel frees its locks one by one, in any order. The model asserts:

- I1, I2, I3, I5 and I7 at every store and every read of a chunk: no reader reads past `published`,
  and the bytes of each reader are a prefix of the blob;
- never two writers;
- I4, more strictly: while no process was killed, no reader sleeps although there is news for it and
  no process is about to ring; so the 250 ms only bound what a kill costs;
- I8: a reaper removes nothing of a live writer; when all processes have gone, nothing is left; only
  what a kill left needs a sweep.

`tools/models/connections.pml` is the life of [connections that outlive their
worker](#connections-that-outlive-their-worker): accept, answer, hand over, adopt, close, with
clients that send two requests in a row, or in pieces. Each store to a table, each byte of a connection
and each message is one step. A worker may be killed between any two steps, also the worker that goes on
after it. The model asserts:

- K1, K2: what a client has got is a prefix of the right answers at any time; no answer comes twice, and
  none is mixed with another;
- K3, and two processes never write to one connection at the same time;
- no connection is lost: each goes on, or is cut for a reason that
  [operations.md](operations.md#when-a-worker-ends) tells;
- nothing is kept of a connection that its client has closed, and no record is used for ever.

`make model` checks both. It needs Debian's packages `spin` and `gcc`. The suite checks a part of each,
and that spin finds each of {bugs} deliberate bugs, such as two stores in the wrong order, or a look
at a lock that is left out.

{model}

The models say nothing of what they leave out: time; how the name and the partial file are claimed; words
that no process decides by (`chunk_count`, `progress`, `position`); damage by other programs; and
processors that let one process see two stores of another in the wrong order. On x86 a reader that
stores its membership and then loads `published` may, for a moment, not see what the
writer stores before it loads the memberships. If both miss each other, the reader wakes after 250 ms
(I4).

## Connections that outlive their worker

`shmstream serve` has another piece of shared memory: each worker has a table of its client
connections, in an anonymous file (`memfd_create`) that only the worker and the supervisor have. The
supervisor has a duplicate of each connection. When a worker ends, in whatever way, the supervisor
gives the duplicate and the record of each connection to another worker. Table and supervisor have
nothing to do with the streams above, and other programs need not know of them.

{table_size} bytes of header, then {record_size} bytes for each record: a word, and at 64 and {second}
two responses of {response_size} bytes. No number of a record is used twice at one time.

The request of a response is not in the table: its bytes stay in the socket until the response is
written whole. Nor is how far a response is: the kernel says how many bytes were ever written to the
connection (`TCP_INFO`: `tcpi_bytes_acked`, and `TIOCOUTQ`), and read from it (`tcpi_bytes_received`
less `FIONREAD`).

{rules}

### Header of a table

{table_header}

### Record

{record}

### Response

{response}

### How the next worker goes on

Of the bytes of the last response, `gone` are written: all that were ever written less `written`.

| what the next worker finds | what it does |
| --- | --- |
| `gone` is the whole response, and `taken` + `request` or only `taken` bytes were read | reads the rest of the request; waits for the next one, or ends the connection if `is_last` |
| the text has the whole response, and `taken` bytes were read | writes the rest of the text; then as above |
| `gone` is 0, `taken` bytes were read, `request` is not 0 | reads the request again, and answers it as if it were new |
| `gone` is a part of a response of known length, `taken` bytes were read, `request` is not 0 | reads the request again; writes the rest of the head that the record has, if the new head has the same status, length, range, coding and strong ETag; then the body from the exact byte |
| anything else | closes the connection |
"""


def page() -> str:
    """The whole page."""
    return _PAGE.format(
        invariants=_rules(control_block.__doc__ or "", "I"),
        first=State(0).name,
        transitions="\n".join(
            f"    {state.name} --> {to.name}"
            for state, following in TRANSITIONS.items()
            for to in sorted(following)
        )
        + "".join(f"\n    {state.name} --> [*]" for state in sorted(TERMINAL)),
        terminal=" and ".join(state.name for state in sorted(TERMINAL)),
        header_size=HEADER_SIZE,
        slot_size=SLOT_SIZE,
        bugs=sum(len(model.bugs) for model in MODELS),
        model=COUNTS.read_text(encoding="utf-8").rstrip(),
        header=_table(Block),
        slot=_table(Slot),
        table_size=connections.HEADER_SIZE,
        record_size=connections.RECORD_SIZE,
        response_size=connections.RESPONSE_SIZE,
        second=connections.FIRST + connections.RESPONSE_SIZE,
        rules=_rules(connections.__doc__ or "", "K"),
        table_header=_table(connections.Header),
        record=_table(connections.Record),
        response=_table(connections.Response),
    )


def _rules(told: str, letter: str) -> str:
    text = re.findall(
        rf"^    ({letter}\d) (.*?)(?=^    {letter}\d|^$|\Z)", told, re.DOTALL | re.MULTILINE
    )
    return "\n".join(f"- **{number}** {' '.join(words.split())}" for number, words in text)


def _table(structure: type[object]) -> str:
    lines = ["| offset | bytes | field | what | written by, at | order |", "| --- " * 6 + "|"]
    for name, field in fields_of(structure).items():
        kind = "text: " if isinstance(field, Text) else ""
        lines.append(
            f"| {field.offset} | {field.size} | `{name}` | {kind}{field.meaning} "
            f"| {field.writer}, {field.when} | {field.order} |"
        )
    return "\n".join(lines)


def operations() -> str:
    """The page as it is, with the table of the metrics as they are."""
    lines = ["| metric | kind | labels | what it tells |", "| --- " * 4 + "|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    before, begin, rest = OPERATIONS.read_text(encoding="utf-8").partition("<!-- metrics")
    comment, end, after = (
        rest.partition("-->")[0],
        "<!-- end -->",
        rest.partition("<!-- end -->")[2],
    )
    return "".join([before, begin, comment, "-->\n", "\n".join(lines), "\n", end, after])


def wings() -> list[tuple[list[str], str]]:
    """The rows of the table of wings, from the top to the ground: names, and what they are for."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = text.partition("<!-- wings")[2].partition("<!-- end of wings -->")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", table, re.MULTILINE)
    return [(re.findall(r"`(\w+)`", names), purpose) for names, purpose in rows]


def picture() -> str:
    """The wings, one box on top of the other."""
    rows = wings()
    boxes = []
    for index, (names, purpose) in enumerate(rows):
        colour = _COLOURS[_zone(names[0])]
        top = 10 + index * _STEP
        what = purpose.replace("`", "").replace("&", "&amp;").replace("<", "&lt;")
        boxes.append(
            f'  <rect x="10" y="{top}" width="740" height="{_STEP - 6}" rx="4" fill="{colour}"/>\n'
            f'  <text x="24" y="{top + 19}" font-weight="bold">{", ".join(names)}</text>\n'
            f'  <text x="224" y="{top + 19}">{what}</text>'
        )
    height = 36 + len(rows) * _STEP
    return _PICTURE.format(height=height, below=height - 12, boxes="\n".join(boxes))


def _zone(wing: str) -> str:
    return next((zone for zone, wings in _ZONES.items() if wing in wings), "servers")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    OPERATIONS.write_text(operations(), encoding="utf-8")
    WINGS.write_text(picture(), encoding="utf-8")
