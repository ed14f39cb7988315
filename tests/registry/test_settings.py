"""The registry's settings: from a file, to the workers and back, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from shmstream.mirror.settings import Mirror
from shmstream.registry.settings import (
    SETTINGS_VARIABLE,
    BadSetting,
    ClusterSettings,
    Settings,
    Upstream,
)

FILE = """
listen = "[::1]:0"
store = "/var/cache/shmstream"
workers = 3
max_bytes = "100GiB"
max_flights = 64
first_byte = "2m"
silence = 90
question = "45s"
outage = "5m"
tag_ttl = "2m"
grace = 1.5
access_log = false
docker_config = "/etc/shmstream/docker.json"
certfile = "/etc/ssl/a.pem"
x_accel_redirect = "/store/"

[[upstream]]
url = "https://registry.example/"

[[upstream]]
namespace = "GHCR.io"
url = "http://127.0.0.1:5001"

[cluster]
url = "rediss://redis:6379"
advertise = "10.0.0.7:5001"
secret_file = "/etc/shmstream/cluster.key"
lease = "4s"

[[mirror]]
path = "/a/"
kind = "http"
url = "http://a/"
ttl = "5s"
immutable = ["*.whl"]

[[mirror]]
path = "/b"
kind = "http"
url = "http://b"
"""


def test_a_file_and_the_way_to_the_workers(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(FILE)
    settings = Settings.from_environment({"SHMSTREAM_CONFIG": str(path)})
    assert settings == Settings(
        upstreams=(
            Upstream(None, "https://registry.example"),
            Upstream("ghcr.io", "http://127.0.0.1:5001"),
        ),
        store="/var/cache/shmstream",
        workers=3,
        max_bytes=100 << 30,
        max_flights=64,
        first_byte=120.0,
        silence=90.0,
        question=45.0,
        outage=300.0,
        tag_ttl=120.0,
        grace=1.5,
        access_log=False,
        docker_config="/etc/shmstream/docker.json",
        certfile="/etc/ssl/a.pem",
        x_accel_redirect="/store/",
        listen="[::1]:0",
        cluster=ClusterSettings(
            "rediss://redis:6379", "10.0.0.7:5001", "/etc/shmstream/cluster.key", lease=4.0
        ),
        mirrors=(
            Mirror("/a", "http", "http://a", 5.0, ("*.whl",)),
            Mirror("/b", "http", "http://b"),
        ),
    )
    environment = {"SHMSTREAM_CONFIG": "/no/such/file", SETTINGS_VARIABLE: settings.to_json()}
    assert Settings.from_environment(environment) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.address == ("::1", 0)
    assert settings.stall > settings.outage, "clients are there when the upstream is back"


def test_connections() -> None:
    """Of all upstreams, and of one."""
    tables = [{"url": "http://a"}, {"url": "http://b", "namespace": "b", "connections": 4}]
    mirrors: list[dict[str, object]] = [
        {"path": f"/{each}", "kind": "http", "url": "http://c"} for each in "de"
    ]
    mirrors[1]["connections"] = 5
    values = {"upstream": tables, "mirror": mirrors, "store": "/s", "connections": 2}
    settings = Settings.from_table(values)
    assert settings.connections == 2
    assert [each.connections for each in settings.upstreams] == [None, 4]
    assert [each.connections for each in settings.mirrors] == [None, 5]
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings((Upstream(None, "http://a"),), "/s").connections is None
    with pytest.raises(BadSetting, match="connections: is between 1 and 64, not 0"):
        Settings.from_table({"upstream": tables, "store": "/s", "connections": 0})
    for wrong in (65, "2", True):
        table = {"url": "http://a", "connections": wrong}
        with pytest.raises(BadSetting, match="upstream 1, connections: is"):
            Settings.from_table({"upstream": [table], "store": "/s"})


@pytest.mark.parametrize("key", ["first_byte", "silence", "question", "outage"])
def test_waiting_times(key: str) -> None:
    upstreams = (Upstream(None, "http://a"),)
    assert getattr(Settings(upstreams, "/s"), key) > 30.0, "real upstreams are silent for so long"
    for value in (-1.0, 1e6, float("nan"), float("inf")):
        given: dict[str, Any] = {key: value}
        with pytest.raises(BadSetting, match=key):
            Settings(upstreams, "/s", **given)


ADDRESSES = [
    ("127.0.0.1:5000", ("127.0.0.1", 5000)),
    (":80", ("", 80)),
    ("[::]:5000", ("::", 5000)),
    ("localhost:1", ("localhost", 1)),
]


def test_addresses() -> None:
    for listen, address in ADDRESSES:
        assert Settings((Upstream(None, "http://a"),), "/s", listen=listen).address == address


UPSTREAMS = [
        ("https://host", Upstream(None, "https://host")),
        ("docker.io=https://registry-1.docker.io/", Upstream("docker.io", "https://registry-1.docker.io")),
        ("a:5000=http://a:5000/prefix", Upstream("a:5000", "http://a:5000/prefix")),
        ("https://host/a=b", Upstream(None, "https://host/a=b")),
]  # fmt: skip


def test_upstreams_of_the_command_line() -> None:
    for text, upstream in UPSTREAMS:
        assert Upstream.parse(text) == upstream


CLUSTER = "[cluster]\nurl = 'redis://a'\nadvertise = 'a:1'\nsecret_file = '/f'\n"
MIRROR = "[[mirror]]\npath = '/a'\nkind = 'http'"
REFUSED: list[tuple[str, str]] = [
    ("store = 1", "store: is a text, not 1"),
    ("store = ''", "store: is a text, not ''"),
    ("[[mirror]]\npath = '/a'", "mirror 1: is a table with path, kind and url; it may have"),
    (f"{MIRROR}\nurl = 'http://a:b@c'", "mirror 1, url: a user and password do not belong here"),
    (f"{MIRROR}\nurl = 'ftp://c'", "mirror 1, url: 'ftp://c' is no URL of a server"),
    (f"{MIRROR}\nurl = 'http://c'\nttl = 'x'", "mirror 1, ttl: 'x' is no duration"),
    (f"{MIRROR}\nurl = 'http://c'\n{MIRROR}\nurl = 'http://d'", "mirror: there are several"),
    ("[[mirror]]\npath='/v2/a'\nkind='http'\nurl='http://c'", "mirror 1, path: '/v2/a' is in use"),
    ("[[mirror]]\npath='a'\nkind='http'\nurl='http://c'", "mirror 1, path: begins with a slash"),
    ("[[mirror]]\npath='/a'\nkind='ftp'\nurl='http://c'", "mirror 1, kind: is one of http"),
    (
        "[[mirror]]\npath='/a'\nkind='http'\nurl='http://c'\nconnections=65",
        "mirror 1, connections: is between 1 and 64, not 65",
    ),
    ("colour = 'red'", "colour: is no setting; there are upstream, mirror, store,"),
    ("workers = 0", "workers: is at least 1, not 0"),
    ("workers = '3'", "workers: is a number, not '3'"),
    ("workers = true", "workers: is a number, not True"),
    ("max_bytes = '100 apples'", "max_bytes: '100 apples' is no size, such as"),
    ("max_bytes = -1", "max_bytes: is at least 0, not -1"),
    (f"tag_ttl = {10**400}", "tag_ttl: is a time, not 1000"),
    ("tag_ttl = '1 year'", "tag_ttl: '1 year' is no duration, such as"),
    ("tag_ttl = nan", "tag_ttl: is a number, not nan"),
    ("access_log = 1", "access_log: is true or false, not 1"),
    ("listen = '5000'", "listen: '5000' is not HOST:PORT or [IPv6]:PORT"),
    ("listen = 'a:70000'", "listen: 'a:70000' is not HOST:PORT"),
    ("listen = '::1:50'", "listen: '::1:50' is not HOST:PORT"),
    ("keyfile = 'a'", "keyfile: goes with certfile"),
    ("x_accel_redirect = 'store'", "x_accel_redirect: begins and ends with a slash"),
    ("upstream = 'https://a'", "upstream: is a list of tables: [[upstream]]"),
    ("[[upstream]]\nname = 'a'", "upstream 2: is a table with `url`"),
    ("[[upstream]]\nurl = 'https://b'", "upstream: there are several without a namespace"),
    ("[[upstream]]\nurl = 'ftp://b'\nnamespace = 'b'", "upstream 2, url: 'ftp://b' is no URL"),
    ("[[upstream]]\nurl = 'https://b'\nnamespace = 'b/c'", "upstream 2, namespace: 'b/c' is no"),
    ("[[upstream]]\nurl = 'https://b:x'\nnamespace = 'b'", "upstream 2, url: 'https://b:x' is no"),
    ("[[upstream]]\nurl = 'https://b?c'\nnamespace = 'b'", "upstream 2, url: 'https://b?c' is no"),
    ("[cluster]\nurl = 'redis://a'", "cluster: is a table with url, advertise and secret_file"),
    (
        CLUSTER + "color = 1",
        "cluster, color: is no setting here: it is a table with url, advertise",
    ),
    (CLUSTER + "fan = 'two'", "cluster, fan: is a number, not 'two'"),
    (CLUSTER + "lease = '3 years'", "cluster, lease: '3 years' is no duration"),
    ("[upstream]", "is no TOML"),
    ("store =", "is no TOML"),
]


def test_a_bad_file_is_refused_with_the_key(tmp_path: Path) -> None:
    for line, told in REFUSED:
        refuse(tmp_path / "bad.toml", line, told)


def refuse(path: Path, line: str, told: str) -> None:
    base = {"store": "store = '/s'", "upstream": "[[upstream]]\nurl = 'https://a'"}
    if line.startswith("["):
        lines = [base["store"], base["upstream"], line]
    else:
        kept = [text for key, text in base.items() if not line.startswith(key)]
        lines = [line, *kept]
    path.write_text("\n".join(lines))
    with pytest.raises(BadSetting) as caught:
        Settings.from_file(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value), line


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadSetting) as caught:
        Upstream.parse("https://user:secret@host")
    assert "secret" not in str(caught.value)
    assert "docker_config" in str(caught.value)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="upstream: is needed"):
        Settings.from_table({"store": "/s"})
    with pytest.raises(BadSetting, match="store: is needed"):
        Settings.from_table({"upstream": [{"url": "http://a"}]})
    with pytest.raises(BadSetting, match="set SHMSTREAM_CONFIG"):
        Settings.from_environment({})
    missing = tmp_path / "missing.toml"
    with pytest.raises(BadSetting, match=r"missing\.toml: cannot be read: No such file"):
        Settings.from_environment({"SHMSTREAM_CONFIG": str(missing)})


# The cluster.


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """A file with a secret."""
    path = tmp_path / "secret"
    path.write_text("a secret of 16 bytes\n")
    return str(path)


def test_a_cluster_gets_its_secret_from_a_file(secret: str) -> None:
    made = ClusterSettings("redis://user@a", "a:1", secret, password_file=secret).make()
    assert (made.secret, made.password) == ("a secret of 16 bytes",) * 2


def test_a_cluster_that_cannot_be_made(secret: str) -> None:
    bad: list[tuple[dict[str, object], str]] = [
        ({"url": "http://a"}, "url: begins with one of redis://"),
        ({"url": "redis://u:p@a"}, "url: a password does not belong here"),
        (
            {"advertise": "a", "fan": 0},
            "advertise: is HOST:PORT or [IPv6]:PORT, not 'a'; fan: is at",
        ),
        ({"secret_file": "/no/such"}, "cluster, secret_file: /no/such cannot be read"),
        ({"password_file": "/no/such"}, "cluster, password_file: /no/such cannot be read"),
        ({"secret_file": "/dev/null"}, "cluster, secret_file: has at least 16 bytes"),
        (
            {"certfile": "/no/such", "cafile": "/no/such"},
            "cluster, certfile: there is no certificate",
        ),
    ]
    for wrong, told in bad:
        given = {"url": "redis://a", "advertise": "a:1", "secret_file": secret, **wrong}
        with pytest.raises(BadSetting) as caught:
            ClusterSettings(**given).make()  # type: ignore[arg-type]
        assert str(caught.value).startswith(told)
        assert "p@a" not in str(caught.value)
