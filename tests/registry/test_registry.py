"""The registry in front of real registries, with real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from shmstream import Store
from tests.support import docker_registry as upstreams
from tests.support import images, registries
from tests.support.commands import ROOT
from tests.support.docker_registry import DockerRegistry, program
from tests.support.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    digest_of,
    image,
    index,
)
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.kept import ports
from tests.support.origin import Origin
from tests.support.registries import Podman, Registry, has_image, skopeo, succeeds
from tests.support.roles import content, sha256
from tests.support.token_server import TokenServer

MIB = 1 << 20
EVERYTHING = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))


def curl(url: str, *options: str) -> bytes:
    command = [program("curl", "curl"), "--silent", "--show-error", "--max-time", "30"]
    return subprocess.run([*command, *options, url], check=True, capture_output=True).stdout


# Pulling.


def test_an_image_is_pulled_once(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    """Eight clients at once, four workers: every blob comes from the upstream once."""
    pushed = docker_registry.push("once/app", "v1", image(1, [1024, 8 * MIB, 3 * MIB]))
    ours = run_registry(docker_registry.url, workers=4)
    docker_registry.reset()
    clients = [skopeo("once/app:v1", ours.host, tmp_path / f"{number}") for number in range(8)]
    for number, client in enumerate(clients):
        succeeds(client)
        assert has_image(tmp_path / f"{number}", pushed.layers)
    wait_until(lambda: len(docker_registry.requests("GET", "/blobs/")) == 4)
    got = [each.path for each in docker_registry.requests("GET")]
    assert len(got) == len(set(got)) == 5, "a manifest, a configuration, three layers"
    assert all(each.status == 200 for each in docker_registry.requests())


def test_what_is_here_is_not_asked_for_again(
    docker_registry: DockerRegistry, ours: Registry, tmp_path: Path
) -> None:
    pushed = docker_registry.push("again/app", "v1", image(2, [1000]))
    succeeds(skopeo("again/app:v1", ours.host, tmp_path / "first"))
    docker_registry.reset()
    succeeds(skopeo(f"again/app@{pushed.digest}", ours.host, tmp_path / "second"))
    assert has_image(tmp_path / "second", pushed.layers)
    assert docker_registry.requests() == []


def test_all_platforms(docker_registry: DockerRegistry, ours: Registry, tmp_path: Path) -> None:
    parts = {"amd64": image(3, [1000, 2000]), "arm64": image(4, [3000], architecture="arm64")}
    docker_registry.push("multi/app", "v1", index(parts))
    succeeds(skopeo("multi/app:v1", ours.host, tmp_path / "all", "--all"))
    assert has_image(tmp_path / "all", parts["amd64"].layers + parts["arm64"].layers)
    docker = {"amd64": image(5, [1000], DOCKER_MANIFEST)}
    docker_registry.push("multi/docker", "v1", index(docker, DOCKER_LIST))
    succeeds(skopeo("multi/docker:v1", ours.host, tmp_path / "docker", "--all"))
    assert has_image(tmp_path / "docker", docker["amd64"].layers)


def test_podman_pulls(docker_registry: DockerRegistry, ours: Registry) -> None:
    what = image(6, [1000, 2000])
    docker_registry.push("podman/app", "v1", index({"amd64": what}))
    with tempfile.TemporaryDirectory() as folder:  # podman allows no long path
        assert Podman(folder).pull(f"{ours.host}/podman/app:v1") == digest_of(what.blobs[0])


def test_a_mirror_as_the_documentation_has_it(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    what = docker_registry.push("library/mirrored", "v1", image(8, [1000]))
    ours = run_registry({"docker.io": docker_registry.url}, workers=1)
    page = (ROOT / "docs" / "registry.md").read_text()
    (snippet,) = re.findall(r"```toml\n(# /etc/containers/.*?)```", page, re.DOTALL)
    assert "127.0.0.1:5000" in snippet
    path = tmp_path / "registries.conf"
    path.write_text(snippet.replace("127.0.0.1:5000", ours.host))
    with pytest.MonkeyPatch.context() as patch:
        for scheme in ("http", "https"):  # no request may leave this machine
            patch.setenv(f"{scheme}_proxy", "http://127.0.0.1:1")
        patch.setenv("no_proxy", "127.0.0.1")
        options = ("--registries-conf", str(path))
        succeeds(skopeo("library/mirrored:v1", "docker.io", tmp_path / "image", *options))
    assert has_image(tmp_path / "image", what.layers)


def test_workers_are_killed_and_skopeo_notices_nothing(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    """skopeo gives up at the first connection that is cut."""
    pushed = docker_registry.push("killed/app", "v1", image(8, [40 * MIB, 30 * MIB, 1000]))
    ours = run_registry(docker_registry.url, workers=3)
    wait_until(lambda: ours.serving.metric("shmstream_worker_starts_total") == 3)
    clients = [skopeo("killed/app:v1", ours.host, tmp_path / name) for name in ("a", "b", "c")]
    killed = 0
    while killed < 4 and any(client.poll() is None for client in clients):
        serving = [each for each in ours.workers() if ports(ours.serving, each)]
        if serving and len(ours.workers()) == 3:
            with suppress(ProcessLookupError):  # the one that was killed before
                os.kill(serving[0], signal.SIGKILL)
                killed += 1
    for client, name in zip(clients, ("a", "b", "c"), strict=True):
        succeeds(client)
        assert has_image(tmp_path / name, pushed.layers)
    assert killed > 0
    wait_until(lambda: len(ours.workers()) == 3)


def test_a_large_layer(docker_registry: DockerRegistry, ours: Registry, tmp_path: Path) -> None:
    pushed = docker_registry.push("large/app", "v1", image(7, [200 * MIB]))
    docker_registry.reset()
    clients = [skopeo("large/app:v1", ours.host, tmp_path / name) for name in ("a", "b")]
    for client, name in zip(clients, ("a", "b"), strict=True):
        succeeds(client)
        assert has_image(tmp_path / name, pushed.layers)
    wait_until(lambda: len(docker_registry.requests("GET", pushed.layers[0])) == 1)


# Manifests, blobs, lists.


def test_manifests(docker_registry: DockerRegistry, ours: Registry) -> None:
    oci = image(10, [1000])
    kinds = [oci, image(11, [1000], DOCKER_MANIFEST), index({"amd64": oci}),
             image(12, [1000], mentions_media_type=False)]  # fmt: skip
    for number, what in enumerate(kinds):
        docker_registry.push("kinds/app", f"v{number}", what)
        for reference in (f"v{number}", what.digest, what.digest):
            for method in ("HEAD", "GET"):
                answer = ours.get(f"/v2/kinds/app/manifests/{reference}", method)
                assert answer.status == 200
                assert answer.body == (what.manifest if method == "GET" else b"")
                assert answer.headers["content-type"] == what.media_type
                assert answer.headers["content-length"] == str(len(what.manifest))
                assert answer.headers["docker-content-digest"] == what.digest
                assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
                assert answer.headers["etag"] == f'"{what.digest}"'
        tag = answer.headers["etag"]
        answer = ours.get(f"/v2/kinds/app/manifests/v{number}", If_None_Match=tag)
        assert (answer.status, answer.body) == (304, b"")


def test_a_head_begins_no_download(docker_registry: DockerRegistry, ours: Registry) -> None:
    pushed = docker_registry.push("head/app", "v1", image(13, [5000]))
    docker_registry.reset()
    answer = ours.head("/v2/head/app/manifests/v1")
    assert answer.headers["docker-content-digest"] == pushed.digest
    answer = ours.head(f"/v2/head/app/blobs/{pushed.layers[0]}")
    assert (answer.status, int(answer.headers["content-length"])) == (200, len(pushed.blobs[1]))
    assert answer.headers["docker-content-digest"] == pushed.layers[0]
    assert answer.headers["content-type"] == "application/octet-stream"
    answer = ours.head(f"/v2/head/app/blobs/sha256:{'0' * 64}")
    assert (answer.status, answer.body) == (404, b"")
    wait_until(lambda: not ours.store.flights())
    assert all(
        each.status == 404 or each.path == "/v2/" for each in docker_registry.requests("GET")
    )
    assert not {pushed.digest, *pushed.layers} & {key for key, _ in ours.store.blobs()}


def test_ranges(docker_registry: DockerRegistry, ours: Registry, tmp_path: Path) -> None:
    pushed = docker_registry.push("ranges/app", "v1", image(14, [300_000]))
    data, url = pushed.blobs[1], f"http://{ours.host}/v2/ranges/app/blobs/{pushed.layers[0]}"
    for wanted, part in (("0-99", data[:100]), ("200000-", data[200_000:]), ("-100", data[-100:])):
        assert curl(url, "--range", wanted) == part
    (tmp_path / "half").write_bytes(data[:150_000])
    curl(url, "--continue-at", "-", "--output", str(tmp_path / "half"))
    assert (tmp_path / "half").read_bytes() == data
    past = f"bytes={len(data)}-"
    answer = ours.get(f"/v2/ranges/app/blobs/{pushed.layers[0]}", Range=past)
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(data)}")
    etag = f'"{pushed.layers[0]}"'
    for condition, status in ((etag, 206), ('"other"', 200)):
        path = f"/v2/ranges/app/blobs/{pushed.layers[0]}"
        assert ours.get(path, Range="bytes=0-9", If_Range=condition).status == status


def test_what_there_is_not(docker_registry: DockerRegistry, ours: Registry) -> None:
    docker_registry.push("there/app", "v1", image(15, [100]))
    none = f"sha256:{'0' * 64}"
    for path, code in (
        ("there/app/manifests/v2", "MANIFEST_UNKNOWN"),
        (f"there/app/manifests/{none}", "MANIFEST_UNKNOWN"),
        (f"there/app/blobs/{none}", "BLOB_UNKNOWN"),
        ("not/there/manifests/v1", "MANIFEST_UNKNOWN"),
        ("not/there/tags/list", "NAME_UNKNOWN"),
    ):
        for _ in range(2):
            answer = ours.get(f"/v2/{path}")
            assert (answer.status, answer.code) == (404, code), path
            assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
            assert ours.head(f"/v2/{path}").status == 404
    wait_until(lambda: ours.store.flights() == [])


def test_tags_and_referrers(docker_registry: DockerRegistry, ours: Registry) -> None:
    subject = docker_registry.push("lists/app", "v1", image(16, [100]))
    docker_registry.push("lists/app", "v2", image(17, [100]))
    answer = ours.get("/v2/lists/app/tags/list")
    assert json.loads(answer.body) == {"name": "lists/app", "tags": ["v1", "v2"]}
    assert answer.headers["content-type"] == "application/json"
    # This upstream has no referrers API: the index has a tag that is made of the digest.
    answer = ours.get(f"/v2/lists/app/referrers/{subject.digest}")
    assert json.loads(answer.body)["manifests"] == []
    signature = image(18, [100])
    fallback = json.loads(index({"amd64": signature}).manifest)
    fallback["manifests"][0]["artifactType"] = "application/x-signature"
    told = images.Image(json.dumps(fallback).encode(), OCI_INDEX, (), (signature,))
    docker_registry.push("lists/app", subject.digest.replace(":", "-"), told)
    for query, count in (("", 1), ("?artifactType=application/x-signature", 1),
                         ("?artifactType=a/b", 0)):  # fmt: skip
        answer = ours.get(f"/v2/lists/app/referrers/{subject.digest}{query}")
        assert answer.headers["content-type"] == OCI_INDEX
        assert len(json.loads(answer.body)["manifests"]) == count
        assert ("oci-filters-applied" in answer.headers) == bool(query)


# Tags.


def test_tags_are_looked_up_again_and_served_stale(
    docker_registry: DockerRegistry, run_registry: registries.Run
) -> None:
    first = docker_registry.push("moving/app", "v1", image(20, [100]))
    ours = run_registry(docker_registry.url, tag_ttl=0, workers=1)

    def digest() -> str:
        return ours.get("/v2/moving/app/manifests/v1").headers["docker-content-digest"]

    assert digest() == first.digest
    second = docker_registry.push("moving/app", "v1", image(21, [100]))
    assert digest() == second.digest
    docker_registry.reset()
    assert digest() == second.digest
    assert {each.method for each in docker_registry.requests()} == {"HEAD"}
    docker_registry.stop()
    for method in ("HEAD", "GET"):
        answer = ours.get("/v2/moving/app/manifests/v1", method)
        assert answer.status == 200
        assert answer.headers["docker-content-digest"] == second.digest
        assert answer.headers["warning"].startswith("110 ")
        assert "hit; ttl=-" in answer.headers["cache-status"]
    assert answer.body == second.manifest
    assert ours.get("/v2/moving/app/manifests/v2").code == "UNAVAILABLE"
    docker_registry.start()
    wait_until(lambda: "warning" not in ours.head("/v2/moving/app/manifests/v1").headers)
    assert digest() == second.digest


def test_a_tag_is_believed_for_a_while_by_all_workers(
    docker_registry: DockerRegistry, ours: Registry
) -> None:
    pushed = docker_registry.push("known/app", "v1", image(22, [100]))
    ours.head("/v2/known/app/manifests/v1", Accept=EVERYTHING)
    docker_registry.reset()
    docker_registry.push("known/app", "v1", image(23, [100]))
    for _ in range(20):
        answer = ours.head("/v2/known/app/manifests/v1", Accept=EVERYTHING)
        assert answer.headers["docker-content-digest"] == pushed.digest
        assert "shmstream; " in answer.headers["cache-status"]
    assert docker_registry.requests("HEAD") == []


# Who may have what.


def test_a_digest_of_another_repository(docker_registry: DockerRegistry, ours: Registry) -> None:
    """A blob that one repository brought in is sent for another one only if that has it, too."""
    secret = docker_registry.push("secret/app", "v1", image(24, [100_000]))
    docker_registry.push("public/app", "v1", image(25, [100]))
    shared = docker_registry.push("copy/app", "v1", image(24, [100_000]))
    digest = secret.layers[0]
    assert ours.get(f"/v2/secret/app/blobs/{digest}").body == secret.blobs[1]
    assert ours.get("/v2/secret/app/manifests/v1").status == 200
    docker_registry.reset()
    for method in ("GET", "HEAD", "GET"):
        assert ours.get(f"/v2/public/app/blobs/{digest}", method).status == 404
        assert ours.get(f"/v2/public/app/manifests/{secret.digest}", method).status == 404
        # A layer is no manifest; this upstream answers such a request with an error of its own.
        assert ours.get(f"/v2/secret/app/manifests/{digest}", method).status == 502
    asked = docker_registry.requests("GET", f"blobs/{digest}")
    assert {each.status for each in asked} == {404}, "a refused HEAD is not final, a refused GET is"
    assert ours.get(f"/v2/copy/app/blobs/{digest}").body == shared.blobs[1]
    assert ours.get(f"/v2/copy/app/blobs/{digest}").body == shared.blobs[1]
    asked = docker_registry.requests("", f"copy/app/blobs/{digest}")
    assert [each.method for each in asked] == ["HEAD"], "once, and no download"


def test_what_is_granted_is_given_when_the_upstream_is_down(
    docker_registry: DockerRegistry, ours: Registry, tmp_path: Path
) -> None:
    pushed = docker_registry.push("down/app", "v1", image(26, [1000]))
    docker_registry.push("down/other", "v1", image(26, [1000]))
    succeeds(skopeo("down/app:v1", ours.host, tmp_path / "up"))
    docker_registry.stop()
    succeeds(skopeo("down/app:v1", ours.host, tmp_path / "down"))
    assert has_image(tmp_path / "down", pushed.layers)
    answer = ours.get(f"/v2/down/other/blobs/{pushed.layers[0]}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE"), "nobody knows whether it has it"
    docker_registry.start()
    assert ours.get(f"/v2/down/other/blobs/{pushed.layers[0]}").status == 200


# Credentials.


def basic_auth(folder: Path) -> dict[str, dict[str, str]]:
    """What a registry needs to admit the user `me` with the password `s3cret`, and nobody else."""
    command = [program("htpasswd", "apache2-utils"), "-nbB", "me", "s3cret"]
    made = subprocess.run(command, check=True, capture_output=True)
    (folder / "htpasswd").write_bytes(made.stdout)
    return {"htpasswd": {"realm": "r", "path": str(folder / "htpasswd")}}


def test_passwords_and_tls(
    run_docker_registry: upstreams.Run,
    run_registry: registries.Run,
    tmp_path: Path,
    tls_certificate: Path,
) -> None:
    upstream = run_docker_registry(auth=basic_auth(tmp_path), certificate=tls_certificate)
    pushed = upstream.push("private/app", "v1", image(27, [1000]), "me:s3cret")
    # The same registry under three names: with the right credentials, with wrong ones, with none.
    told = {
        "SSL_CERT_FILE": str(tls_certificate),
        "SHMSTREAM_AUTH": "me:s3cret",
        "SHMSTREAM_AUTH_WRONG_TEST": "me:wr0ng",
    }
    names: dict[str | None, str] = dict.fromkeys((None, "wrong.test", "none.test"), upstream.url)
    ours = run_registry(names, told, workers=1)
    succeeds(skopeo("private/app:v1", ours.host, tmp_path / "image"))
    assert has_image(tmp_path / "image", pushed.layers)
    refused = [each for each in upstream.requests() if each.status == 401]
    assert len(refused) == 1, "the first time, and never again"
    for name in ("wrong.test", "none.test"):
        for part in ("manifests/v1", f"blobs/{pushed.layers[0]}"):
            answer = ours.get(f"/v2/{name}/private/app/{part}")
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
            assert answer.headers["www-authenticate"].startswith("Basic ")
    log = ours.serving.stop_and_read()
    assert '"path":"/v2/private/app/manifests/v1"' in log
    assert "s3cret" not in log
    assert "wr0ng" not in log
    distrusting = run_registry(upstream.url, {"SHMSTREAM_AUTH": "me:s3cret"}, workers=1)
    assert distrusting.get("/v2/private/app/manifests/v2").code == "UNAVAILABLE"
    assert "certificate" in distrusting.serving.log


def test_tokens(
    run_docker_registry: upstreams.Run,
    run_registry: registries.Run,
    token_server: TokenServer,
    tmp_path: Path,
) -> None:
    upstream = run_docker_registry(auth=token_server.auth)
    everything = token_server.token({"team/a", "team/b", "team/c"})
    pushed = upstream.push("team/a", "v1", image(28, [1000]), everything)
    upstream.push("team/b", "v1", image(28, [1000]), everything)
    upstream.push("team/c", "v1", image(28, [1000]), everything)
    token_server.allow(None, None, "team/a")
    names: dict[str | None, str] = {None: upstream.url, "named.test": upstream.url}
    ours = run_registry(names, {"SHMSTREAM_AUTH_NAMED_TEST": "me:s3cret"}, workers=1)
    succeeds(skopeo("team/a:v1", ours.host, tmp_path / "a"))
    assert has_image(tmp_path / "a", pushed.layers)
    (asked,) = token_server.asked
    fields = {"account": "x", "service": "the registry", "scope": "repository:team/a:pull"}
    assert (asked.method, asked.fields, asked.authorization) == ("GET", fields, None)
    # A client that may not pull from team/b does not get a blob of team/a by that name.
    layer = pushed.layers[0]
    answer = ours.get(f"/v2/team/b/blobs/{layer}")
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    token_server.allow("me", "s3cret", "team/b")
    assert ours.get(f"/v2/named.test/team/b/blobs/{layer}").status == 200
    assert ours.get(f"/v2/named.test/team/c/blobs/{layer}").code == "UNAUTHORIZED"
    assert ours.get(f"/v2/team/b/blobs/{layer}").code == "UNAUTHORIZED"
    # An identity token from a helper program.
    helper = tmp_path / "docker-credential-tests"
    helper.write_text('#!/bin/sh\necho \'{"Username": "<token>", "Secret": "1dentity"}\'\n')
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {upstream.host: "tests"}}))
    token_server.allow("<token>", "1dentity", "team/c")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    config = str(tmp_path / "config.json")
    helped = run_registry(upstream.url, path, docker_config=config, workers=1)
    assert helped.get(f"/v2/team/c/blobs/{layer}").status == 200
    assert token_server.asked[-1].method == "POST"
    assert token_server.asked[-1].fields["grant_type"] == "refresh_token"
    for each in (ours, helped):
        log = each.serving.stop_and_read()
        assert f'/team/c/blobs/{layer}"' in log
        assert "s3cret" not in log
        assert "1dentity" not in log


def test_a_redirect_to_a_cdn(
    run_docker_registry: upstreams.Run,
    run_registry: registries.Run,
    origin: Origin,
    tmp_path: Path,
) -> None:
    upstream = run_docker_registry(
        auth=basic_auth(tmp_path),
        middleware={"storage": [{"name": "redirect", "options": {"baseurl": origin.url("/")}}]},
    )
    what = image(29, [300_000])
    data = content(29, 300_000)
    upstream.push("far/app", "v1", what, "me:s3cret")
    digest = upstream.push_blob("far/app", data, "me:s3cret")
    hexes = digest.partition(":")[2]
    path = f"/docker/registry/v2/blobs/sha256/{hexes[:2]}/{hexes}/data"
    origin.serve(path, seed=29, size=300_000)
    origin.change(path, first=0, count=1, reset_after=100_000)
    ours = run_registry(upstream.url, {"SHMSTREAM_AUTH": "me:s3cret"}, workers=1)
    assert ours.get(f"/v2/far/app/blobs/{digest}").body == data
    first, second = origin.requests()
    assert (first.path, second.range) == (path, "bytes=100000-")
    assert not {"authorization", "cookie"} & {*first.headers, *second.headers}
    # A server that allows a GET of that URL only, and no HEAD: we ask for one byte instead.
    upstream.push_blob("far/other", data, "me:s3cret")
    origin.change(path, first=2, count=1, status=403)
    assert ours.get(f"/v2/far/other/blobs/{digest}").body == data
    refused, asked = origin.requests()[2:]
    assert (refused.method, asked.method, asked.range) == ("HEAD", "GET", "bytes=0-0")


# Clients.


def test_a_slow_client_holds_up_nobody(
    docker_registry: DockerRegistry, ours: Registry, tmp_path: Path
) -> None:
    """It takes 100 KiB a second for SHMSTREAM_SLOW_SECONDS; after 70 s it has the whole blob."""
    pushed = docker_registry.push("slow/app", "v1", image(34, [32 * MIB]))
    docker_registry.reset()
    connection, response = ours.open(f"/v2/slow/app/blobs/{pushed.layers[0]}")
    taken = response.read(1)
    clients = [skopeo("slow/app:v1", ours.host, tmp_path / name) for name in ("a", "b")]
    for client, name in zip(clients, ("a", "b"), strict=True):
        succeeds(client)
        assert has_image(tmp_path / name, pushed.layers)
    for _ in range(int(os.environ.get("SHMSTREAM_SLOW_SECONDS", "2"))):
        taken += response.read(100 * 1024)
        time.sleep(1)  # the pace of the slow client
    assert sha256(taken + response.read()) == pushed.layers[0].partition(":")[2]
    connection.close()
    wait_until(lambda: len(docker_registry.requests("GET", pushed.layers[0])) == 1)


# Failures.


ENDLESS = """
from shmstream.sources.retries import Retries
Retries.__init__.__defaults__ = (10_000, *Retries.__init__.__defaults__[1:])
"""
"""Run by each interpreter of a server as it begins: sources are tried for as long as it takes."""


def test_the_upstream_is_killed_and_back(
    docker_registry: DockerRegistry, run_registry: registries.Run, tmp_path: Path
) -> None:
    (tmp_path / "registry-0").mkdir()
    (tmp_path / "registry-0" / "sitecustomize.py").write_text(ENDLESS)
    ours = run_registry(docker_registry.url)
    for attempt in range(10):
        name, folders = f"killed/app{attempt}", [tmp_path / f"{attempt}{each}" for each in "ab"]
        pushed = docker_registry.push(name, "v1", image(300 + attempt, [100 * MIB]))
        clients = [skopeo(f"{name}:v1", ours.host, folder) for folder in folders]
        wait_until(partial(is_here, ours.store, pushed.layers[0]))
        docker_registry.pause()
        if is_in_the_middle(ours.store, 80 * MIB):  # the rest is more than what buffers hold
            break
        docker_registry.resume()  # it was faster
        for client in clients:
            succeeds(client)
    docker_registry.stop()
    time.sleep(3)  # the time in which the upstream is away
    docker_registry.reset()
    docker_registry.start()
    for client, folder in zip(clients, folders, strict=True):
        succeeds(client)
        assert has_image(folder, pushed.layers)
    wait_until(lambda: len(docker_registry.requests("GET", pushed.layers[0])) > 0)
    (asked,) = docker_registry.requests("GET", pushed.layers[0])
    assert asked.status == 206


def is_here(store: Store, key: str) -> bool:
    return has_published(store, key, MIB) or key in store


def is_in_the_middle(store: Store, most: int) -> bool:
    return any(0 < each.published < most for each in store.flights())


def has_published(store: Store, key: str, count: int) -> bool:
    return any(each.key == key and each.published >= count for each in store.flights())


def test_the_worker_that_leads_is_killed(
    docker_registry: DockerRegistry, run_registry: registries.Run
) -> None:
    """All clients see a pause, also its own. The upstream sees one more request."""
    ours = run_registry(docker_registry.url, workers=2)
    before = ours.workers()
    for attempt in range(10):
        name = f"worker/app{attempt}"
        pushed = docker_registry.push(name, "v1", image(310 + attempt, [50 * MIB]))
        digest = pushed.layers[0]
        docker_registry.reset()
        path = f"/v2/{name}/blobs/{digest}"
        clients = [ours.open(path)]
        wait_until(partial(is_here, ours.store, digest))
        docker_registry.pause()
        if is_in_the_middle(ours.store, 30 * MIB):  # the rest is more than what buffers hold
            break
        docker_registry.resume()  # it was faster
        clients[0][1].read()
        clients[0][0].close()
    leader = ours.store.flights()[0].leader
    assert leader is not None
    os.kill(leader.pid, signal.SIGSTOP)  # so that the other worker gets the next client
    clients.append(ours.open(path))
    os.kill(leader.pid, signal.SIGKILL)
    docker_registry.resume()
    for connection, response in clients:
        assert sha256(response.read()) == digest.partition(":")[2]
        connection.close()
    wait_until(lambda: 206 in {each.status for each in docker_registry.requests("GET", digest)})
    wait_until(lambda: len(now := ours.workers()) == 2 and now != before)


def test_wrong_bytes_and_then_right_ones(
    docker_registry: DockerRegistry, ours: Registry, tmp_path: Path
) -> None:
    pushed = docker_registry.push("wrong/app", "v1", image(32, [500_000]))
    digest = pushed.layers[0]
    docker_registry.damage(digest)
    client = skopeo("wrong/app:v1", ours.host, tmp_path / "wrong")
    client.communicate(timeout=PATIENCE)
    assert client.returncode != 0
    wait_until(lambda: not ours.store.flights())
    assert digest not in ours.store
    docker_registry.damage(digest)  # the second time repairs it
    succeeds(skopeo("wrong/app:v1", ours.host, tmp_path / "right"))
    assert has_image(tmp_path / "right", pushed.layers)


# Settings.


def test_layers_begin_with_their_manifest(
    docker_registry: DockerRegistry, run_registry: registries.Run
) -> None:
    pushed = docker_registry.push("ahead/app", "v1", image(33, [1000, 2000, 3000]))
    docker_registry.push("ahead/app", "multi", index({"amd64": pushed}))
    ours = run_registry(docker_registry.url, workers=1, prefetch=2)
    ours.get("/v2/ahead/app/manifests/multi")
    ours.head("/v2/ahead/app/manifests/v1")
    assert docker_registry.requests("GET", "/blobs/") == []
    ours.get("/v2/ahead/app/manifests/v1")
    wait_until(lambda: all(layer in ours.store for layer in pushed.layers[:2]))
    assert pushed.layers[2] not in ours.store, "two at a time, and no more are waited for"
    assert ours.get(f"/v2/ahead/app/blobs/{pushed.layers[0]}").body == pushed.blobs[1]
    wait_until(lambda: len(docker_registry.requests("GET", "/blobs/")) == 2)
