"""What is kept: images by name, pulled in advance, removed; and tags that never change."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shmstream import Store
from shmstream.errors import ShmstreamError
from shmstream.registry.housekeeping import Housekeeper
from shmstream.registry.images import Images
from shmstream.registry.pulling import ALL, Puller, this_platform
from shmstream.registry.references import Reference
from shmstream.registry.settings import Settings, Upstream
from tests.support.commands import PYTHON, ROOT
from tests.support.docker_registry import program
from tests.support.images import image, index
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.quirks import Asked, Quirks, Reply, Script, plain
from tests.support.serving import Serve

FIRST, SECOND = image(61, [5000, 6000]), image(61, [5000, 7000])  # they share a layer
BOTH = index({"amd64": FIRST, "arm64": SECOND})
NAME = "r.io/team/app"

REFERENCES = [
    ("debian", "debian", None),
    ("debian:12", "debian", "12"),
    ("docker://docker.io/library/debian:12", "docker.io/library/debian", "12"),
    ("host:5000/team/app", "host:5000/team/app", None),
    ("host:5000/team/app:v1@" + FIRST.digest, "host:5000/team/app", FIRST.digest),
    ("app@" + FIRST.digest, "app", FIRST.digest),
]


def test_how_people_write_an_image() -> None:
    for text, name, reference in REFERENCES:
        assert Reference.parse(text) == Reference(name, reference)
    for text in ("", "a b", "app@sha256:12", "app:", ":v1"):
        with pytest.raises(ValueError, match="is no image"):
            Reference.parse(text)


def tagged(**tags: Script) -> Script:
    """A registry with these tags; the script of each has an image as `v1`."""

    def script(asked: Asked) -> Reply:
        last = asked.path.rpartition("/")[2]
        if last in tags:
            return tags[last](replace(asked, path=asked.path.replace(last, "v1")))
        found = [each(asked) for each in tags.values()]
        return next((each for each in found if each.status < 400), found[0])

    return script


@pytest.fixture
def upstream(quirks: Quirks) -> Quirks:
    quirks.script = tagged(one=plain(FIRST), two=plain(SECOND), both=plain(BOTH, FIRST, SECOND))
    return quirks


def settings(folder: str, upstream: Quirks, **more: object) -> Settings:
    return Settings((Upstream("r.io", upstream.url),), folder, **more)  # type: ignore[arg-type]


def keys(store: Store) -> set[str | None]:
    return {key for key, _ in store.blobs()}


def test_an_image_is_pulled_and_removed(folder: str, upstream: Quirks) -> None:
    """What two images share goes with the last of them."""
    store = Store(folder)
    puller, images = Puller(settings(folder, upstream), store), Images(store)
    pulled = puller.pull(f"{NAME}:one")
    assert (pulled.image, pulled.digest) == (f"{NAME}:one", FIRST.digest)
    assert (pulled.blobs, pulled.fetched) == (4, 4)
    assert puller.pull(f"{NAME}:one").fetched == 0
    assert puller.pull(f"{NAME}:two").fetched == 3
    assert [str(each) for each in images.all()] == [f"{NAME}:one", f"{NAME}:two"]
    assert images.size_of(images.all()[0])[0] == 4
    assert len(images.remove(images.matching(f"{NAME}:one"))) == 3
    assert SECOND.layers[0] in keys(store)
    images.remove(images.matching(NAME))
    assert (keys(store), images.all()) == (set(), [])


def test_an_index_is_pulled_for_some_platforms(folder: str, upstream: Quirks) -> None:
    store = Store(folder)
    puller = Puller(settings(folder, upstream), store)
    puller.pull(f"{NAME}:both", ["linux/arm64"])
    assert SECOND.digest in keys(store)
    assert FIRST.digest not in keys(store)
    puller.pull(f"{NAME}:both", [ALL])
    assert {BOTH.digest, FIRST.digest, SECOND.digest, *FIRST.layers, *SECOND.layers} <= keys(store)
    with pytest.raises(ValueError, match=r"but for linux/amd64, linux/arm64"):
        puller.pull(f"{NAME}:both", ["plan9/mips"])
    assert this_platform().startswith("linux/")


@pytest.mark.parametrize("platforms", ["linux/amd64", {"linux/amd64": True}])
def test_platforms_are_a_list(platforms: Any, folder: str, upstream: Quirks) -> None:
    puller = Puller(settings(folder, upstream), Store(folder))
    with pytest.raises(TypeError, match=r"platforms is a list such as \['linux/arm64'\]"):
        puller.pull("localhost/app", platforms)


def test_what_cannot_be_pulled(folder: str, upstream: Quirks) -> None:
    puller = Puller(settings(folder, upstream), Store(folder))
    for text in (f"{NAME}:three", "other.io/a:v1", f"{NAME}@{FIRST.layers[0]}", "UPPER:v1"):
        with pytest.raises((ShmstreamError, ValueError)):
            puller.pull(text)


def test_images_that_are_old(folder: str, upstream: Quirks) -> None:
    """By their last use, and by the time since they came; other upstreams have other times."""
    store = Store(folder)
    puller, images = Puller(settings(folder, upstream), store), Images(store)
    puller.pull(f"{NAME}:one")
    puller.pull(f"{NAME}:two")
    [note] = [each for each in (Path(folder) / "registry/images").iterdir()
              if json.loads(each.read_text())["reference"] == "one"]  # fmt: skip
    os.utime(note, (0, note.stat().st_mtime - 7200))
    assert Housekeeper(settings(folder, upstream), store).remove_outdated() == []
    longer = Settings((Upstream("r.io", upstream.url, unused_for=7300.0),), folder, unused_for=60.0)
    assert Housekeeper(longer, store).remove_outdated() == []
    old = settings(folder, upstream, unused_for=3600.0)
    assert Housekeeper(old, store).remove_outdated() == [f"{NAME}:one"]
    assert [str(each) for each in images.all()] == [f"{NAME}:two"]
    gone = settings(folder, upstream, kept_for=0.0)
    assert Housekeeper(gone, store).remove_outdated() == [f"{NAME}:two"]
    assert keys(store) == set()


def test_images_of_a_pattern_that_are_old(folder: str, upstream: Quirks) -> None:
    """The longest pattern that fits counts, after the upstream with that namespace."""
    told = (
        Upstream("*.io", upstream.url, kept_for=0.0),
        Upstream("*.r.io", upstream.url),
        Upstream("own.io", upstream.url),
    )
    store = Store(folder)
    kept = Settings(told, folder)
    puller = Puller(kept, store)
    names = [f"{host}/team/app:one" for host in ("any.io", "a.r.io", "own.io")]
    for each in names:
        puller.pull(each)
    assert Housekeeper(kept, store).remove_outdated() == names[:1]
    assert sorted(map(str, Images(store).all())) == sorted(names[1:])


def test_a_tag_that_never_changes_is_pulled_again_without_a_question(
    folder: str, upstream: Quirks
) -> None:
    """Unless its manifest is here no longer."""
    store = Store(folder)
    fixed = settings(folder, upstream, immutable_tags=("on*",), tag_ttl=0.0)
    for tag, asked in (("one", 1), ("two", 3)):
        for _ in range(3):
            Puller(fixed, store).pull(f"{NAME}:{tag}")
        assert len(upstream.requests(f"manifests/{tag}")) == asked
    store.remove(FIRST.digest)
    assert Puller(fixed, store).pull(f"{NAME}:one").fetched == 1
    assert len(upstream.requests("manifests/one")) == 2


def test_one_worker_at_a_time_keeps_house(
    folder: str, store: Store, upstream: Quirks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others look whether it has ended, and one of them goes on."""
    monkeypatch.setattr("shmstream.registry.housekeeping._LOOK_EVERY", 0.01)
    at_it: list[Housekeeper] = []

    def keep(housekeeper: Housekeeper) -> None:
        at_it.append(housekeeper)
        housekeeper._stopping.wait()

    monkeypatch.setattr(Housekeeper, "_keep_house", keep)
    preloading = Settings((Upstream("r.io", upstream.url),), folder, preload=(f"{NAME}:one",))
    two = [Housekeeper(preloading, each) for each in (store, Store(folder))]
    try:
        for each in two:
            each.start()
        wait_until(lambda: len(at_it) == 1)
        assert store.turns(0.0).take("housekeeping") is None
        at_it[0].stop()
        wait_until(lambda: len(at_it) == 2)
        assert set(at_it) == set(two)
    finally:
        for each in two:
            each.stop()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, "-m", "shmstream", *arguments], cwd=ROOT, capture_output=True,
                          text=True, timeout=PATIENCE, check=False)  # fmt: skip


def test_on_the_command_line(folder: str, upstream: Quirks) -> None:
    store = ("--store", folder)
    told = ("--upstream", f"r.io={upstream.url}")
    pulled = command("pull", f"{NAME}:one", f"{NAME}:none", *told, *store)
    assert (pulled.returncode, pulled.stdout) == (1, f"{NAME}:one {FIRST.digest}\n")
    assert f"{NAME}:one: 4 blobs, 4 of them new" in pulled.stderr
    assert f"{NAME}:none: " in pulled.stderr
    listed = json.loads(command("ls", "--images", "--json", *store).stdout)["images"]
    assert [(each["image"], each["blobs"]) for each in listed] == [(f"{NAME}:one", 4)]
    assert f"{NAME}:one" in command("ls", "--images", *store).stdout
    assert command("pin", f"{NAME}:one", *store).returncode == 0
    assert all(entry.is_pinned for _, entry in Store(folder).blobs())
    assert command("unpin", f"{NAME}:one", *store).returncode == 0
    assert not any(entry.is_pinned for _, entry in Store(folder).blobs())
    assert command("rm", f"{NAME}:one", *store).stderr == f"{NAME}:one: removed\n"
    assert Store(folder).blobs() == []
    assert command("rm", f"{NAME}:one", *store).returncode == 1


def test_a_registry_for_admins(serve: Serve, upstream: Quirks, tmp_path: Path) -> None:
    """It preloads; an image that a real client pulled is listed, removed, and pulled again."""
    (tmp_path / "tokens").write_text("me my-own-token\nyou your-own-token\n")
    serving = serve(
        "--tokens", str(tmp_path / "tokens"), "--admins", "me", "--preload", f"{NAME}:two",
        "--upstream", f"r.io={upstream.url}", "--immutable-tags", "o*", "--tag-ttl", "0s",
        upstream="",
    )  # fmt: skip

    def ask(path: str, method: str = "GET", token: str = "my-own-token") -> tuple[int, object]:
        answer = serving.ask(path, method, Authorization=f"Bearer {token}")
        return answer.status, json.loads(answer.body)

    def names() -> set[str]:
        found = ask("/admin/images")[1]
        assert isinstance(found, dict)
        return {each["image"] for each in found["images"]}

    wait_until(lambda: f"{NAME}:two" in names())
    assert serving.metric("shmstream_upstream_bytes_total", upstream="r.io") > 0
    assert serving.metric("shmstream_upstream_bytes_total", upstream="") == 0
    assert serving.metric("shmstream_upstream_requests_total", upstream="r.io") > 0
    place = f"docker://{serving.host}:{serving.port}/{NAME}:one"
    copy = [program("skopeo", "skopeo"), "copy", "--src-tls-verify=false", "--src-creds",
            "you:your-own-token", place, f"dir:{tmp_path / 'copy'}"]  # fmt: skip
    subprocess.run(copy, check=True, capture_output=True)
    wait_until(lambda: names() == {f"{NAME}:one", f"{NAME}:two"})  # a thread notes them
    assert ask("/v2/_catalog") == (200, {"repositories": [NAME]})
    for path, method in (("/admin/images", "GET"), (f"/admin/images/{NAME}", "DELETE")):
        assert ask(path, method, "your-own-token")[0] == 403
        assert serving.ask(path, method).status == 401
    assert ask(f"/v2/{NAME}/manifests/one")[0] == 200
    asked = len(upstream.requests("manifests/one"))
    for _ in range(3):
        assert ask(f"/v2/{NAME}/manifests/one")[0] == 200
    assert len(upstream.requests("manifests/one")) == asked, "it never changes its meaning"
    assert ask(f"/admin/images/{NAME}:one", "DELETE")[0] == 200
    assert ask(f"/admin/images/{NAME}:one", "DELETE")[0] == 404
    assert names() == {f"{NAME}:two"}
    assert ask(f"/admin/images/{NAME}:one", "POST")[0] == 200
    assert names() == {f"{NAME}:one", f"{NAME}:two"}
    assert ask(f"/admin/images/{NAME}:none", "POST")[0] == 404
    assert [ask("/admin/images", each)[0] for each in ("POST", "DELETE", "PATCH")] == [405] * 3
