"""`shmstream serve`: workers that die and are replaced, signals, limits, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.commands import PYTHON, ROOT, Command, Running
from tests.support.crowds import BLOB, DATA, MIB
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.kept import all_serve
from tests.support.origin import Origin, bound
from tests.support.root import mount, needs_root, unmount
from tests.support.serving import Serve, Serving

STARTS = "shmstream_worker_starts_total"


def both_run(serving: Serving, starts: int = 2) -> bool:
    """Whether two workers run, and `starts` workers have begun to serve so far."""
    return len(serving.workers()) == 2 and serving.metric(STARTS) == starts


# Workers.


def test_killed_workers_are_replaced_and_counted_on(serve: Serve) -> None:
    serving = serve()
    wait_until(lambda: both_run(serving))
    for _ in range(20):
        assert serving.ask("/healthz").body == b"alive\n"
    serving.wait_for_metric(20, "shmstream_requests_total", route="health")
    first = set(serving.workers())
    for worker in first:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: both_run(serving, starts=4))
    assert not first & set(serving.workers())
    assert serving.log.count("died by SIGKILL; another one replaces it") == 2
    assert serving.metric("shmstream_requests_total", route="health") == 20
    assert len(list(serving.temporary.glob("*/counter_*.db"))) == 2, "one for each worker's number"


def test_it_serves_without_standard_descriptors(tmp_path: Path) -> None:
    """As a program that is started with 0, 1 and 2 closed: no socket gets one of these numbers."""
    with bound() as place:  # keeps the port for the server
        address = f"127.0.0.1:{place.getsockname()[1]}"
        arguments = ["--upstream", "http://127.0.0.1:1", "--listen", address, "--workers", "2"]
        command = [*PYTHON, "-m", "shmstream", "serve", *arguments, "--store", f"{tmp_path}/store"]
        serving = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=ROOT)
        try:
            wait_until(lambda: answers(address))
            process = psutil.Process(serving.pid)
            wait_until(lambda: len(process.children()) == 2)
            [worker, _] = process.children()
            worker.kill()
            wait_until(lambda: worker not in process.children())
            wait_until(lambda: answers(address))
            serving.terminate()
            assert serving.wait(PATIENCE) == 0
        finally:
            serving.kill()
            serving.wait()


def answers(address: str) -> bool:
    """Whether a server there says that it lives."""
    with suppress(OSError), closing(http.client.HTTPConnection(address, timeout=5)) as client:
        client.request("GET", "/healthz")
        return client.getresponse().status == 200
    return False


def remove(folder: Path) -> None:
    """Remove a folder in which workers make files at the same time."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_gone)


def test_its_temporary_folder_is_removed(serve: Serve) -> None:
    """As by a program that removes old files from /tmp. Workers can be replaced all the same."""
    serving = serve()
    wait_until(lambda: both_run(serving))
    [folder] = serving.temporary.iterdir()
    remove(folder)
    for _ in range(4):
        assert serving.ask("/metrics").status == 200
    os.kill(serving.workers()[0], signal.SIGKILL)
    wait_until(lambda: "made anew" in serving.log and len(serving.workers()) == 2)
    wait_until(lambda: len([*folder.glob("counter_*.db")]) >= 1)
    remove(folder)
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len([*folder.glob("counter_*.db")]) >= 2)
    assert serving.ask("/metrics").status == 200


@needs_root
def test_no_space_in_its_temporary_folder(serve: Serve, tmp_path: Path) -> None:
    """As where it is on the disk of the store. Metrics lie there, and to count is no risk."""
    disk = tmp_path / "temporary"
    mount(disk, "size=4m")
    try:
        serving = serve("--workers", "1", "--no-access-log")
        [worker] = serving.workers()
        assert serving.ask("/healthz").status == 200  # so it has its files
        for number in range(3):
            with (disk / f"{number}").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        for path in ("/healthz", "/metrics", "/none", "/v2/", "/v2/a/tags/list?n=x", "/readyz"):
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
                assert serving.ask(path, method).status > 0
        assert serving.workers() == [worker]
        serving.process.send_signal(signal.SIGHUP)  # a worker of another number, which has no files
        wait_until(lambda: worker not in (now := serving.workers()) and len(now) == 1)
        assert serving.metric("shmstream_worker_starts_total") > 0
        assert "counts for itself alone" in serving.log
        os.kill(serving.workers()[0], signal.SIGKILL)
        wait_until(lambda: "died by SIGKILL" in serving.log and len(serving.workers()) == 1)
        assert serving.ask("/v2/").status == 200
        assert serving.stop() == 0
        assert "SIGBUS" not in serving.log
        for each in disk.iterdir():
            each.unlink()
    finally:
        unmount(disk)


def test_a_worker_that_cannot_start_ends_it_all(serve: Serve) -> None:
    serving = serve()
    wait_until(lambda: both_run(serving))
    shutil.rmtree(serving.store)
    serving.store.write_text("no folder")
    for worker in serving.workers():  # one that has served for long would be a reason to go on
        os.kill(worker, signal.SIGKILL)
    assert serving.finish() == 1
    assert re.search(rf"ERROR   worker \d+ .*{serving.store}", serving.log)


def test_every_worker_has_its_share(serve: Serve) -> None:
    serving = serve("--workers", "4")
    wait_until(lambda: all_serve(serving, 4))
    connections = [serving.connect() for _ in range(40)]
    for connection in connections:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"alive\n"
    assert min(established(worker) for worker in serving.workers()) > 0
    for connection in connections:
        connection.close()


def established(worker: int) -> int:
    """How many connections a worker has."""
    found = psutil.Process(worker).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in found)


def test_workers_have_room_for_descriptors_before_their_first_client(serve: Serve) -> None:
    serving = serve()
    wait_until(lambda: both_run(serving))
    for worker in serving.workers():
        soft, _ = psutil.Process(worker).rlimit(psutil.RLIMIT_NOFILE)
        status = Path(f"/proc/{worker}/status").read_text()
        [places] = re.findall(r"FDSize:\s*(\d+)", status)
        assert int(places) >= min(soft, 4096)


def test_descriptors_are_as_many_as_allowed_and_without_it_waits(serve: Serve) -> None:
    serving = serve("--workers", "1")
    assert serving.ask("/healthz").status == 200
    [worker] = map(psutil.Process, serving.workers())
    soft, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds() + 4, hard))
    clients = [socket.create_connection((serving.host, serving.port)) for _ in range(20)]
    wait_until(lambda: "a connection cannot be taken over: too many open files" in serving.log)
    for client in clients:
        client.close()
    assert serving.ask("/healthz").status == 200


# How it ends.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_quietly(number: signal.Signals, serve: Serve) -> None:
    serving = serve("--grace", "20s")
    idle = serving.connect()
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    silent = socket.create_connection((serving.host, serving.port))
    viewer, events = serving.open("/events")
    first = events.readline()
    assert first == b"retry: 1000\n"
    assert serving.stop(number) == 0
    assert (first + events.read()).endswith(b"\n\n"), "a whole event, then the end"
    for each in (idle, viewer, silent):
        each.close()
    assert serving.is_gone()
    assert [line for line in serving.log.splitlines() if " ERROR " in line] == []
    with pytest.raises(ConnectionRefusedError):
        serving.ask("/healthz")


def test_new_clients_are_refused_as_soon_as_it_stops(
    serve: Serve, origin: Origin, upstream: str
) -> None:
    """Those that are there are served to their end."""
    origin.change(BLOB, first=0, count=1, stall_after=MIB)
    serving = serve("--grace", "60s", upstream=upstream)
    connection, response = serving.open(BLOB)
    first = response.read(MIB // 2)
    serving.workers()
    serving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_refused(serving))
    assert serving.process.poll() is None
    assert len(serving.workers()) > 0
    origin.release()
    assert first + response.read() == DATA
    connection.close()
    assert serving.finish() == 0


def is_refused(serving: Serving) -> bool:
    """Whether a new client is refused; a client that is not sees its connection end."""
    try:
        with socket.create_connection((serving.host, serving.port), PATIENCE):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the socket was closed while this client connected
        return False


def test_ctrl_c_while_workers_start(tmp_path: Path) -> None:
    command = Command(
        tmp_path, "serve", "--upstream", "http://127.0.0.1:1", "--store", str(tmp_path / "store"),
        "--listen", "127.0.0.1:0", terminal=True,
    )  # fmt: skip
    try:
        command.wait_for("Serving http://127.0.0.1:1 at ")
        command.press(b"\x03")
        assert command.finish() == 0
        command.check()
    finally:
        command.close()


def test_workers_end_with_a_parent_that_is_killed(serve: Serve) -> None:
    serving = serve()
    wait_until(lambda: both_run(serving))
    serving.process.kill()
    serving.process.wait()
    wait_until(serving.is_gone)
    assert len(list(serving.temporary.iterdir())) == 1
    again = serve()  # tidies up
    wait_until(lambda: both_run(again))
    assert len(list(serving.temporary.iterdir())) == 1
    assert again.stop() == 0


def test_sighup_brings_other_workers(serve: Serve, tls_certificate: Path) -> None:
    mine = Path(shutil.copy(tls_certificate, tls_certificate.with_name("mine.pem")))
    serving = serve("--certfile", str(mine))
    serving.tls = ssl.create_default_context(cafile=str(tls_certificate))
    wait_until(lambda: both_run(serving))
    before = set(serving.workers())
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(set(serving.workers()) - before) == 2)
    wait_until(lambda: not before & set(serving.workers()))
    wait_until(lambda: both_run(serving, starts=4))
    mine.write_text("renewed, in a wrong way")
    serving.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the workers stay as they are: certfile: " in serving.log)
    assert serving.stop() == 0


# Where it listens.


def test_tls(serve: Serve, tls_certificate: Path) -> None:
    serving = serve("--workers", "1", "--certfile", str(tls_certificate))
    serving.tls = ssl.create_default_context(cafile=str(tls_certificate))
    for probe in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b""):
        say(serving, probe)
    assert serving.ask("/healthz").body == b"alive\n"
    assert is_quiet(serving)
    assert f"at https://127.0.0.1:{serving.port} " in serving.log


def say(serving: Serving, what: bytes) -> None:
    """Send these bytes, and wait for the end of the connection."""
    with socket.create_connection((serving.host, serving.port), PATIENCE) as client:
        client.sendall(what)
        client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while client.recv(65536):
                pass


def test_a_client_that_ends_its_side_gets_all_answers(serve: Serve) -> None:
    serving = serve("--workers", "1")
    with socket.create_connection((serving.host, serving.port), PATIENCE) as client:
        for path in (b"/healthz", b"/v2/", b"/healthz"):
            client.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answers:
            assert answers.read().count(b"HTTP/1.1 200 OK") == 3
    assert is_quiet(serving)


def is_quiet(serving: Serving) -> bool:
    """Whether there is no warning in the log."""
    return not re.search(r"WARNING|ERROR|Traceback", serving.log)


def test_probes_and_odd_requests_are_no_news(serve: Serve) -> None:
    serving = serve("--workers", "1")
    for probe in (
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1",
        b"",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"PUT /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        b"GET /v2/ HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        say(serving, probe)
    assert serving.ask("/healthz").status == 200
    assert is_quiet(serving), serving.log


@pytest.mark.parametrize("listen", ["[::1]:0", ":0"])
def test_addresses(listen: str, serve: Serve) -> None:
    serving = serve("--workers", "1", "--listen", listen)
    assert serving.ask("/healthz").status == 200


def test_more_connections_than_allowed(serve: Serve) -> None:
    serving = serve("--max-connections", "3", "--workers", "1")
    connections = [socket.create_connection((serving.host, serving.port)) for _ in range(3)]
    wait_until(lambda: serving.ask("/healthz").status == 503)
    for connection in connections:
        connection.close()
    wait_until(lambda: serving.ask("/healthz").status == 200)


# The command line.


def start(*arguments: str, store: Path) -> Running:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMSTREAM_STORE", str(store))
        patch.setenv("COLUMNS", "200")
        return Running("serve", *arguments, cwd=ROOT)


def refused(running: Running) -> tuple[int, str]:
    """Exit code and error output."""
    with closing(running):
        code, out, errors = running.finish()
    assert out == b""
    return code, errors


UPSTREAM = ("--upstream", "http://127.0.0.1:1")


WRONG: list[tuple[list[str], str]] = [
    ([], "--upstream: is needed: the URL of the registry to pull from."),
    (["--upstream", "ftp://host"], "--upstream: 'ftp://host' is no URL of a registry"),
    (["--upstream", "http://a", "--upstream", "http://b"], "there are several without a name"),
    (["--upstream", "https://me:secret@host"], "put them into docker_config."),
    ([*UPSTREAM, "--listen", "5000"], "--listen: '5000' is not HOST:PORT or [IPv6]:PORT."),
    ([*UPSTREAM, "--workers", "0"], "'--workers': 0 is not in the range"),
    ([*UPSTREAM, "--max-bytes", "much"], "'--max-bytes': 'much' is no size, such as"),
    ([*UPSTREAM, "--tag-ttl", "long"], "'--tag-ttl': 'long' is no duration, such as"),
    ([*UPSTREAM, "--keyfile", "key.pem"], "--keyfile: goes with certfile."),
    ([*UPSTREAM, "--config", "/no/such"], "/no/such: cannot be read: No such file"),
]


def test_wrong_usage(tmp_path: Path) -> None:
    begun = [(start(*arguments, store=tmp_path / "store"), told) for arguments, told in WRONG]
    for running, told in begun:
        code, errors = refused(running)
        assert (code, told in errors) == (2, True), errors
        assert "Usage: shmstream serve" in errors
        assert "secret" not in errors
    assert not (tmp_path / "store").exists()


def test_what_makes_it_impossible(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    (tmp_path / "file").write_text("")
    cases: list[tuple[list[str], str, str]] = [
        (["--listen", address], "store", f"cannot listen on {address}: Address already in use"),
        (["--listen", "host.invalid:1"], "store", "cannot listen on host.invalid:1: "),
        ([], "file/store", "file/store cannot hold a store: "),
        (["--certfile", "/no/such"], "store", "--certfile: /no/such or its key cannot be read:"),
        (["--certfile", "/etc/passwd"], "store", "certfile: in /etc/passwd there are no certific"),
        (["--docker-config", "/no/such"], "store", "--docker-config: cannot read /no/such: No"),
    ]
    begun = [
        (start(*UPSTREAM, *arguments, store=tmp_path / store), told)
        for arguments, store, told in cases
    ]
    for running, told in begun:
        code, errors = refused(running)
        assert (code, told in errors) == (1, True), errors
        assert errors.splitlines()[-1].startswith("Error: ")
    taken.close()


def test_options_go_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(
        'upstream = [{url = "http://127.0.0.1:2"}]\nstore = "/no/such/place"\n'
        'certfile = "/etc/passwd"\nworkers = 1\nlisten = "127.0.0.1:0"\n'
    )
    mine = tmp_path / "mine"
    code, errors = refused(start("--config", str(config), "--certfile", "/no/such", store=mine))
    assert (code, "certfile: /no/such or its key" in errors) == (1, True)
    assert (tmp_path / "mine" / "blobs").is_dir()
    config.write_text("workers = 0\n[[upstream]]\nurl = 'http://a'\n")
    code, errors = refused(start("--config", str(config), store=mine))
    assert code == 2
    assert f"Error: {config}: workers: is at least 1, not 0." in errors


def test_without_the_extra(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['uvicorn'] = None\n"
        f"sys.argv[1:] = {['serve', *UPSTREAM, '--store', str(tmp_path / 'store')]!r}\n"
        "from shmstream.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert done.stderr == "Error: `serve` needs: pip install 'shmstream[serve]'\n"


def test_an_application_for_another_server(tmp_path: Path) -> None:
    """uvicorn itself, with a file and counters for one process."""
    config = tmp_path / "settings.toml"
    config.write_text(f'store = "{tmp_path}/store"\n[[upstream]]\nurl = "http://127.0.0.1:1"\n')
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--port", "0", "--no-access-log", "--factory",
             "shmstream.registry:create_app"],
            env={**os.environ, "SHMSTREAM_CONFIG": str(config), "PYTHONPATH": str(ROOT)},
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_until(lambda: "Uvicorn running on" in Path(log.name).read_text())
            port = int(Path(log.name).read_text().partition(" (Press")[0].rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            for path in ("/readyz", "/metrics"):
                connection.request("GET", path)
                body = connection.getresponse().read()
            assert b'shmstream_requests_total{cache="",method="GET",route="ready"' in body
            connection.close()
            process.terminate()
            process.wait(PATIENCE)
            [line] = [line for line in Path(log.name).read_text().splitlines() if "readyz" in line]
            assert json.loads(line)["status"] == 200
        finally:
            process.kill()
            process.wait()
