"""A forked worker ends as Python ends a program: the same code, the same words."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shmstream.registry.server.starting import Forked, Starter
from tests.support.interpreters import PATIENCE, Interpreter, Link
from tests.support.zygote import ROOT

MODULE = """
import atexit, os, signal, sys, threading, time, weakref

class Thing:
    pass

thing = Thing()

def main():
    {body}

if __name__ == "__main__":
    main()
"""

INTERRUPTED = "signal.pthread_sigmask({how}, [signal.SIGINT]); raise KeyboardInterrupt"
BROKEN = "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); sys.stdout.write('lost')"

ENDS = {
    "pass": 0,
    "print('told')": 0,
    "sys.exit()": 0,
    "sys.exit(7)": 7,
    "sys.exit(-1)": 255,
    "sys.exit(300)": 44,
    "sys.exit(130)": 130,
    "sys.exit(True)": 1,
    "sys.exit('words')": 1,
    "sys.exit(('a', 'pair'))": 1,
    "print('told'); sys.exit(5)": 5,
    "os._exit(9)": 9,
    "raise ValueError('wrong')": 1,
    "sys.excepthook = lambda *error: print('hook', error[1]); raise ValueError('wrong')": 1,
    INTERRUPTED.format(how="signal.SIG_UNBLOCK"): -signal.SIGINT,
    INTERRUPTED.format(how="signal.SIG_BLOCK"): 128 + signal.SIGINT,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "atexit.register(print, 'told'); sys.exit(5)": 5,
    "atexit.register(print, 'told'); raise ValueError('wrong')": 1,
    "atexit.register(int, 'none'); sys.exit(5)": 5,
    "atexit.register(sys.exit, 6); sys.exit(5)": 5,
    "weakref.finalize(thing, print, 'told')": 0,
    "threading.Timer(0.1, print, ['told']).start(); sys.exit(5)": 5,
    "threading.Thread(target=time.sleep, args=[1000], daemon=True).start()": 0,
    "sys.stdout.close(); sys.exit(5)": 5,
    "sys.stdout = None; sys.exit(5)": 5,
    "sys.stdout.write('lost'); os.close(1)": 120,
    f"{BROKEN}; sys.exit(5)": 120,
}


def run_worker(link: Link, folder: str, is_forked: bool) -> None:
    """A role: start a worker that writes to files of this folder, and tell how it has ended."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout = open(1, "w", closefd=False)  # buffered, also if PYTHONUNBUFFERED is set
    sys.path.insert(0, folder)
    atexit.register(Path(folder, "parent").write_text, "has ended")
    with tempfile.TemporaryDirectory(dir=folder) as mine:
        starter = Starter("program", os.open(os.devnull, os.O_RDONLY), {"PYTHONPATH": folder})
        if is_forked:
            starter.prepare()
        worker = starter.start(0, {}, [], None)
        code = worker.wait()
        assert worker.stdin is not None
        worker.stdin.close()
        assert isinstance(worker, Forked) == is_forked
        assert Path(mine).is_dir(), "a worker removes nothing of its parent"
        link.say([code, Path(folder, "parent").exists()])


@pytest.mark.parametrize(("body", "code"), ENDS.items())
def test_ends(body: str, code: int, tmp_path: Path, start: Callable[..., Interpreter]) -> None:
    (tmp_path / "program.py").write_text(MODULE.format(body=body))

    def ends(is_forked: bool) -> tuple[object, str, list[str]]:
        running = start(run_worker, str(tmp_path), is_forked)
        told = running.hear()
        running.finish()
        (tmp_path / "parent").unlink()
        words = (tmp_path / "err").read_text().splitlines()
        return told, (tmp_path / "out").read_text(), words[-1:]

    assert ends(is_forked=True) == ends(is_forked=False)
    assert ends(is_forked=True)[0] == [code, False]


SERVER = """
import sys
from shmstream.registry.server.serve import serve
from shmstream.registry.settings import Settings, Upstream

upstreams = (Upstream(None, "http://127.0.0.1:1"),)
serve(Settings(upstreams, sys.argv[1], listen="127.0.0.1:0"), print, module="program")
"""


@pytest.mark.parametrize(
    ("statement", "code", "words"),
    [
        ("sys.exit(4)", 4, []),
        ("sys.exit('words')", 1, ["words"]),
        ("raise ValueError('wrong')", 1, ["ValueError: wrong"]),
    ],
)
def test_a_module_that_cannot_be_imported(
    statement: str, code: int, words: list[str], tmp_path: Path
) -> None:
    """The server imports it, and so ends with it; there is nothing that it could start again."""
    (tmp_path / "program.py").write_text(f"import sys\n{statement}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (code, words)
    assert list(temporary.iterdir()) == []
