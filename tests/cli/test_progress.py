"""What `fetch` shows on a terminal while it waits."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shmstream import Store
from tests.cli.conftest import BLOB, Run, Show, flying
from tests.support.origin import Origin


def test_a_bar_on_a_terminal(show: Show, store: Store, origin: Origin, url: str) -> None:
    origin.change("/blob", stall_after=200_000)
    leader = show("fetch", url, "-v")
    leader.wait_for(r"blob leads \S*━\S* +[\d.]+ KiB of 293.0 KiB")
    flying(store)
    follower = show("fetch", url, "-o", "out")
    follower.wait_for(r"blob follows \S*━")
    flying(store, followers=1)
    origin.release()
    assert leader.finish() == 0
    assert follower.finish() == 0
    assert re.search(r"leads ━+ +293.0 KiB +(?:[\d.]+ \w+/s  )?in 0:\d\d", leader.output)
    assert f"INFO    {url}: complete, 300000 bytes\n" in leader.output
    assert leader.output.rstrip().endswith(os.path.basename(Store(store.folder).blobs()[0][1].path))
    assert (follower.folder / "out").read_bytes() == BLOB
    leader.check()


def test_no_bar_where_the_bytes_go(show: Show, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a line\n")
    assert run("fetch", "text")[0] == 0
    fetch = show("fetch", "text", "-o", "-")
    assert fetch.finish() == 0
    assert fetch.is_plain
    assert fetch.output == f"a line\n{tmp_path}/text: stored, 7 bytes\n"
