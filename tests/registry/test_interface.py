"""The registry meets its store through `Store`, and through no file, lock or layout behind it."""

from __future__ import annotations

import ast
from pathlib import Path

import shmstream.registry

ALLOWED = {"shmstream.storage.flights", "shmstream.storage.stock"}
"""What a store tells of itself; everything else of `storage` belongs to the store alone."""
FOR_THE_STORE = ("shmstream.storage", "shmstream.stream.segment", "shmstream.stream.partial",
                 "shmstream.system.locks", "shmstream.flight.flight")  # fmt: skip


def test_no_room_of_the_registry_goes_under_its_store() -> None:
    rooms = list(Path(shmstream.registry.__path__[0]).rglob("*.py"))
    assert len(rooms) > 20
    for room in rooms:
        text = room.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert module in ALLOWED or not module.startswith(FOR_THE_STORE), (room, module)
        assert "._layout" not in text, room
