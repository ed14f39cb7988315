"""Servers meet their store through `Store`, and through no file, lock or layout behind it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shmstream

ALLOWED = {"shmstream.storage.flights", "shmstream.storage.stock", "shmstream.storage.folder"}
"""What a store tells of itself, and which folders are stores. All other rooms of `storage` belong
to the store alone."""
FOR_THE_STORE = ("shmstream.storage", "shmstream.stream.segment", "shmstream.stream.partial",
                 "shmstream.system.locks", "shmstream.flight.flight")  # fmt: skip


@pytest.mark.parametrize("wing", ["registry", "mirror", "upstreams"])
def test_no_room_of_a_server_goes_under_its_store(wing: str) -> None:
    rooms = list(Path(shmstream.__path__[0], wing).rglob("*.py"))
    assert len(rooms) > 5
    for room in rooms:
        text = room.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert module in ALLOWED or not module.startswith(FOR_THE_STORE), (room, module)
        assert "._layout" not in text, room
