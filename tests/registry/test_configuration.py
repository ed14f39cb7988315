"""Where settings come from: options, the environment, a file; and all mistakes at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from shmstream.cli.serve import serve
from shmstream.registry import configuration
from shmstream.registry.settings import BadSetting, Settings
from tests.support.commands import PYTHON, ROOT
from tests.support.images import image
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.quirks import Quirks, plain
from tests.support.registries import Run

GOOD = """
# workers = 0, in a comment
store = "/s"   # and [another] = 1
tag_ttl = "10s"
listen = '''127.0.0.1:1'''

[[upstream]]
namespace = "docker.io"
url = [
    "https://harbor/v2/proxy",  # ]
    "https://registry-1.docker.io",
]
cafile = "/ca.pem"
first_byte = "5s"

[[upstream]]
url = "https://a"

[cluster]
url = "redis://a"
advertise = "a:1"
secret_file = "/f"
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    path = tmp_path / "settings.toml"

    def write(text: str) -> str:
        path.write_text(text)
        return str(path)

    return write


def test_who_comes_before(written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(GOOD)
    monkeypatch.setenv("SHMSTREAM_SERVE_TAG_TTL", "20s")
    monkeypatch.setenv("SHMSTREAM_SERVE_GRACE", "7")
    monkeypatch.setenv("SHMSTREAM_SERVE_WORKERS", "3")
    monkeypatch.setenv("SHMSTREAM_SERVE_ACCESS_LOG", "false")
    monkeypatch.setenv("SHMSTREAM_SERVE_CLUSTER__LEASE", "9s")
    settings = Settings.read({"tag_ttl": "30s"}, path)
    assert (settings.tag_ttl, settings.grace, settings.workers) == (30.0, 7.0, 3)
    assert settings.access_log is False
    assert settings.hash_named is True
    monkeypatch.setenv("SHMSTREAM_SERVE_HASH_NAMED", "no")
    assert Settings.read({}, path).hash_named is False
    assert Settings.read({"hash_named": True}, path).hash_named is True
    assert settings.cluster is not None
    assert (settings.cluster.lease, settings.cluster.url) == (9.0, "redis://a")
    assert settings.upstreams[0].addresses()[0].prefix == "proxy"
    monkeypatch.setenv("SHMSTREAM_SERVE_UPSTREAM", "http://x quay.io=http://y,http://z")
    told = Settings.from_environment({"SHMSTREAM_CONFIG": path}).upstreams
    assert [(each.namespace, each.url, each.more) for each in told] == [
        (None, "http://x", ()), ("quay.io", "http://y", ("http://z",)),
    ]  # fmt: skip
    assert Settings.from_table({"store": "/s", "upstream": [{"url": "http://a"}]}).grace == 30.0


def test_it_can_be_printed_and_read_again(written: Callable[[str], str]) -> None:
    settings = Settings.read({}, written(GOOD))
    assert (
        Settings.read({}, written(configuration.as_toml(settings, settings.upstreams))) == settings
    )


BAD = '''workers = 0
max_byts = "1GiB"
silence = """
90 apples"""
"listen" = 5000

[[upstream]]
url = "https://a"

[[upstream]]
namespace = "b"
url = "ftp://b"

[[upstream]]
namespace = "c"
max_pulls = "many"

[[mirror]]
path = "hf"
kind = "hugging"
url = "https://user:hush@hf"

[cluster]
url = "redis://a"
advertise = "a:1"
max_peers = 0
fan = "two"
'''
MISTAKES = [
    (1, "workers: is at least 1, not 0"),
    (2, "max_byts: is no setting; did you mean max_bytes?"),
    (3, "silence: "),
    (5, "listen: is a text, not 5000"),
    (12, "upstream 2, url: 'ftp://b' is no URL"),
    (14, "upstream 3: is a table with `url`"),
    (16, "upstream 3, max_pulls: is a number in a time"),
    (19, "mirror 1, path: begins with a slash"),
    (20, "mirror 1, kind: is one of http"),
    (21, "mirror 1, url: a user and password do not belong here"),
    (23, "cluster: is a table with url, advertise and secret_file"),
    (26, "cluster, max_peers: is at least 1, not 0"),
    (27, "cluster, fan: is a number, not 'two'"),
]


def test_all_mistakes_are_told_with_their_lines(written: Callable[[str], str]) -> None:
    path = written(BAD)
    with pytest.raises(BadSetting) as caught:
        Settings.read({"store": "/s"}, path)
    found = caught.value.mistakes
    assert [each.line for each in found] == [line for line, _ in MISTAKES], found
    for each, (line, told) in zip(found, MISTAKES, strict=True):
        assert str(each).startswith(f"{path}: {told}")
        assert each.told.endswith(f". Line {line}.")
    assert "hush" not in caught.value.told


def test_a_mistake_tells_where_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSTREAM_SERVE_GRACE", "for ever")
    with pytest.raises(BadSetting) as caught:
        Settings.read({"tag_ttl": -1, "store": "/s"}, None)
    told = [str(each) for each in caught.value.mistakes]
    assert any(each.startswith("SHMSTREAM_SERVE_GRACE: 'for ever' is no") for each in told), told
    assert "--tag-ttl: is at least 0, not -1.0" in told
    assert any(each.startswith("--upstream: is needed") for each in told)


@given(some.dictionaries(some.sampled_from(["store", "workers", "grace", "keep", "upstream",
                                            "cluster", "x"]),
                         some.recursive(some.none() | some.booleans() | some.integers()
                                        | some.text(max_size=5) | some.floats(),
                                        lambda it: some.lists(it, max_size=2)
                                        | some.dictionaries(some.text(max_size=4), it, max_size=2),
                                        max_leaves=4)))  # fmt: skip
def test_whatever_a_table_has(table: dict[str, object]) -> None:
    """It is right, or a mistake that is told; and nothing else happens."""
    try:
        Settings.from_table(table)
    except BadSetting as error:
        told = [each.reason for each in error.mistakes]
    else:
        told = ["nothing"]
    assert all(told)


def test_each_setting_has_an_option() -> None:
    options = {each.name for each in serve.params}
    inner = {"upstreams", "store"}  # `upstreams` and `folder` are the names of the parameters
    inner |= {"mirrors"}  # which only a file has
    assert {each.name for each in fields(Settings)} - inner - {"shared_group"} <= options
    assert {"upstreams", "folder"} <= options


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, "-m", "shmstream", "serve", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=PATIENCE, env={**os.environ, "COLUMNS": "200", **environment}, check=False,
    )  # fmt: skip


def test_the_command_line_checks_and_prints(tmp_path: Path, written: Callable[[str], str]) -> None:
    store = str(tmp_path / "store")
    good = run("--check", "--print-config", "--upstream", "a.io=https://a", "--store", store)
    assert (good.returncode, good.stderr) == (0, "The settings are good: a.io from https://a\n")
    path = written(good.stdout)
    assert Settings.read({}, path).store == store
    missing = run("--check", "--config", path, "--certfile", "/no/such")
    assert missing.returncode == 1
    assert "certfile: /no/such or its key cannot be read" in missing.stderr
    wrong = run("--check", "--config", written("workers = 0"), "--max-bytes", "much",
                "--prefetch", "-1", "--listen", "x", SHMSTREAM_SERVE_SILENCE="long")  # fmt: skip
    assert wrong.returncode == 2
    for told in ("'--max-bytes'", "'--prefetch'", "'--silence'", "--listen: 'x' is", "Line 1."):
        assert told in wrong.stderr, wrong.stderr
    assert "6 settings are not valid:" in wrong.stderr
    assert not Path(store).exists(), "it touches nothing"


def test_all_files_that_cannot_be_used_are_told(written: Callable[[str], str]) -> None:
    names = ("htpasswd", "tokens", "docker_config", "certfile")
    lines = ['store = "/s"', *(f'{each} = "/no/{each}"' for each in names)]
    lines += ["[[upstream]]", 'url = "https://a"', 'cafile = "/no/ca"', 'certfile = "/no/own"']
    lines += ["[cluster]", 'url = "redis://a"', 'advertise = "a:1"', 'secret_file = "/no/secret"']
    wrong = run("--check", "--config", written("\n".join(lines)))
    assert wrong.returncode == 1
    places = [*enumerate(names, 2), (8, "upstream 1, cafile"), (9, "upstream 1, certfile"),
              (13, "cluster, secret_file")]  # fmt: skip
    told = wrong.stderr.splitlines()
    assert told[0] == f"Error: {len(places)} settings are not valid:"
    for text, (line, key) in zip(told[1:], places, strict=True):
        assert f".toml: {key}: " in text
        assert text.removesuffix(".").endswith(f". Line {line}"), text


def test_sighup_reads_the_settings_anew(run_registry: Run, quirks: Quirks, tmp_path: Path) -> None:
    """A file that is wrong changes nothing; the workers are replaced by a file that is right."""
    quirks.script = plain(image(41, [1000]))
    ours = run_registry("http://127.0.0.1:1", workers=1)
    [file] = list(tmp_path.rglob("serve.toml"))
    [worker] = ours.workers()
    text = file.read_text()
    file.write_text(text + "\ncolour = 1")
    ours.serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the workers stay as they are" in ours.serving.log)
    assert re.search(r"serve\.toml: upstream 1, colour: .*Line \d+\.", ours.serving.log)
    assert ours.workers() == [worker]
    file.write_text(text.replace("http://127.0.0.1:1", quirks.url) + "\nprefix = 'far'")
    ours.serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: ours.workers() != [worker])
    wait_until(lambda: ours.get("/v2/a/b/manifests/v1").status == 200)
    assert quirks.asked[-1].path.startswith("/v2/far/a/b/")
    file.write_text("max_connections = 99\n" + file.read_text())
    ours.serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "max_connections: a change counts when" in ours.serving.log)
    wait_until(lambda: ours.get("/v2/").status == 200)
