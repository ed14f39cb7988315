"""The real pip and uv through a mirror of an index that the test has made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from shmstream.mirror import index_pages
from shmstream.upstreams.notes import Notes
from tests.support.interpreters import PATIENCE, wait_until
from tests.support.mirrors import Mirrored
from tests.support.package_index import JSON, PackageIndex, wheel
from tests.support.quirks import Asked, Reply
from tests.support.roles import content

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PIP_", "UV_")) and "proxy" not in name.lower()
}


def run(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={
            **CLEAN,
            "PIP_CONFIG_FILE": os.devnull,
            "PYTHONWARNINGS": "ignore",
            "UV_HTTP_TIMEOUT": str(int(PATIENCE)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def pip(index: str, to: Path, *what: str) -> subprocess.Popen[str]:
    options = ["--no-cache-dir", "--disable-pip-version-check", "--timeout", str(int(PATIENCE))]
    options += ["--index-url", index, "-d", str(to)]
    return run(sys.executable, "-m", "pip", "download", *options, *what)


def uv(index: str, to: Path, *what: str) -> subprocess.Popen[str]:
    options = ["--no-config", "--no-cache", "--default-index", index, "--target", str(to)]
    return run(find_uv_bin(), "pip", "install", "--python", sys.executable, *options, *what)


def ends_well(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def test_pip_and_uv_at_once(mirrored: Mirrored, index: PackageIndex, tmp_path: Path) -> None:
    first = index.add("first-pkg", "1.0", ["second-pkg>=2"], size=500_000)
    second = index.add("second-pkg", "2.1", size=1000)
    url = f"{mirrored.url}/pypi/simple/"
    running = [
        pip(url, tmp_path / "pip", "First_Pkg"),
        uv(url, tmp_path / "uv", "first-pkg"),
    ]
    for each in running:
        ends_well(each)
    names = ["first_pkg-1.0-py3-none-any.whl", "second_pkg-2.1-py3-none-any.whl"]
    got = {each.name: each.read_bytes() for each in (tmp_path / "pip").iterdir()}
    assert got == dict(zip(names, [first, second], strict=True))
    assert (tmp_path / "uv" / "second_pkg.py").read_text() == "VERSION = '2.1'\n"
    for name in names:
        assert len(index.gets(name)) == 1
        assert len(index.gets(f"{name}.metadata")) <= 1
    pages = index.quirks.requests("/simple/first-pkg/")
    assert len(pages) == 1  # both accept JSON
    assert f"sha256:{hashlib.sha256(first).hexdigest()}" in mirrored.store


def test_pages_in_both_forms(mirrored: Mirrored, index: PackageIndex) -> None:
    data = index.add("forms-pkg", "1.0")
    digest, name = hashlib.sha256(data).hexdigest(), "forms_pkg-1.0-py3-none-any.whl"
    path = f"/pypi/_files/simple/forms-pkg/{name}"
    page = mirrored.ask("/pypi/simple/forms-pkg/")
    assert page.headers["content-type"] == "text/html; charset=UTF-8"
    assert f'<a href="{path}#sha256={digest}" data-requires-python="&gt;=3.7"' in page.body.decode()
    assert b"Links &amp; more" in page.body
    assert index.files.url.encode() not in page.body
    again = mirrored.ask("/pypi/simple/forms-pkg/", If_None_Match=page.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    told = mirrored.ask("/pypi/simple/Forms.PKG", Accept=f"{JSON}, text/html;q=0.1")
    assert told.headers["content-type"] == JSON
    [entry] = json.loads(told.body)["files"]
    assert (entry["url"], entry["hashes"], entry["requires-python"]) == (
        path, {"sha256": digest}, ">=3.7",
    )  # fmt: skip
    assert mirrored.ask(path).body == data
    assert mirrored.ask(path, Range="bytes=0-3").body == data[:4]
    assert mirrored.ask(f"{path}.metadata").body.startswith(b"Metadata-Version: 2.1\nName: forms")
    root = mirrored.ask("/pypi/simple/").body.decode()
    assert '<a href="/pypi/simple/forms-pkg/">' in root
    assert mirrored.ask("/pypi/simple/none-such/").status == 404


def test_a_page_is_fresh_for_its_ttl_only(mirrored: Mirrored, index: PackageIndex) -> None:
    """Though the index says ten minutes. A file that the kept page lacks is looked for at once."""
    index.add("moves-pkg", "1.0")
    for _ in range(2):
        assert mirrored.ask("/pypi/simple/moves-pkg/").status == 200
    assert len(index.quirks.requests("/moves-pkg/")) == 1
    for _ in range(2):
        answer = mirrored.ask("/pypi-now/simple/moves-pkg/")
    assert "revalidated" in answer.headers["cache-status"]
    told = mirrored.ask("/pypi/simple/moves-pkg/").headers["cache-control"]
    assert 0 < int(told.removeprefix("max-age=")) <= 60
    data = index.add("moves-pkg", "2.0")
    name = "moves_pkg-2.0-py3-none-any.whl"
    assert name.encode() not in mirrored.ask("/pypi/simple/moves-pkg/").body
    assert name.encode() in mirrored.ask("/pypi-now/simple/moves-pkg/").body
    assert mirrored.ask(f"/pypi/_files/simple/moves-pkg/{name}").body == data


def test_only_what_the_index_names_is_fetched(mirrored: Mirrored, index: PackageIndex) -> None:
    index.add("only-pkg", "1.0")
    seen = len(index.files.asked)
    for path in ("other-1.0.whl", "..%2fsecret.whl", "http://127.0.0.1:1/a.whl"):
        assert mirrored.ask(f"/pypi/_files/simple/only-pkg/{path}").status in (400, 404)
    assert len(index.files.asked) == seen


def test_the_index_is_away(mirrored: Mirrored, index: PackageIndex) -> None:
    data = index.add("away-pkg", "1.0")
    path = "/pypi-now/_files/simple/away-pkg/away_pkg-1.0-py3-none-any.whl"
    assert mirrored.ask("/pypi-now/simple/away-pkg/").status == 200
    assert mirrored.ask(path).body == data
    index.quirks.script = index.files.script = lambda _: Reply(resets=True)
    answer = mirrored.ask("/pypi-now/simple/away-pkg/")
    assert (answer.status, "origin-unreachable" in answer.headers["cache-status"]) == (200, True)
    assert mirrored.ask(path).body == data
    assert mirrored.ask("/pypi-now/simple/never-seen/").status == 502


def test_a_password_is_passed_on_and_kept_nowhere(
    mirrored: Mirrored, index: PackageIndex, tmp_path: Path
) -> None:
    data = index.add("own-pkg", "1.0", size=2000)
    secret = base64.b64encode(b"me:open-sesame").decode()
    index.password = f"Basic {secret}"
    url = mirrored.url.replace("//", "//me:open-sesame@")
    ends_well(pip(f"{url}/pypi-now/simple/", tmp_path / "pip", "own-pkg"))
    name = "own_pkg-1.0-py3-none-any.whl"
    assert (tmp_path / "pip" / name).read_bytes() == data
    assert not any(each.authorization for each in index.files.asked)
    assert mirrored.ask("/pypi-now/simple/own-pkg/").status == 401
    assert mirrored.ask(f"/pypi-now/_files/simple/own-pkg/{name}").status == 404
    for file in mirrored.serving.store.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    index.password = None
    index.add("open-pkg", "1.0")
    name = "open_pkg-1.0-py3-none-any.whl"
    assert mirrored.ask(f"/pypi-now/_files/simple/open-pkg/{name}").status == 200
    names = Notes(str(mirrored.serving.store), "names")
    wait_until(lambda: name in {each.text for each in names.all()})
    assert not [each for each in names.all() if "own_pkg" in each.text], "everybody may see names"


def test_files_without_a_hash(mirrored: Mirrored, index: PackageIndex, tmp_path: Path) -> None:
    """As in the listing of a folder: they are kept by their URL."""
    data = wheel("plain-pkg", "1.0")
    name = "plain_pkg-1.0-py3-none-any.whl"

    def script(asked: Asked) -> Reply:
        if asked.path == "/simple/plain-pkg/":
            return Reply(200, {"Content-Type": "text/html"}, f'<a href="{name}">x</a>'.encode())
        if asked.path == f"/simple/plain-pkg/{name}":
            return Reply(200, {"Cache-Control": "no-cache"}, data)
        return Reply(404)

    index.quirks.script = script
    ends_well(pip(f"{mirrored.url}/pypi-now/", tmp_path / "pip", "plain-pkg"))
    assert (tmp_path / "pip" / name).read_bytes() == data
    assert mirrored.ask(f"/pypi-now/_files/plain-pkg/{name}").body == data
    assert len(index.quirks.requests(name)) == 1


PAGE = "http://a/simple/x/"
RELINKED = [
    ('<a href="x-1.zip">x</a>', '<a href="/m/x-1.zip">x</a>'),
    ("<a  href=../../f/x-1.zip#sha256=0>", '<a  href="/m/x-1.zip#sha256=0">'),
    ("<A class='>' HREF='x-1.zip'>", "<A class='>' HREF=\"/m/x-1.zip\">"),
    ('<base href="http://b/"><a href="x-1.zip?a&amp;b">', '<a href="/m/x-1.zip">'),
    ("<a name=x>", "<a name=x>"),
    ('<a href="/about">', '<a href="http://a/about">'),
    (
        '<a data-requires-python=">=3" href="x-1.zip">',
        '<a data-requires-python=">=3" href="/m/x-1.zip">',
    ),
]


@pytest.mark.parametrize(("before", "after"), RELINKED)
def test_links_in_html(before: str, after: str) -> None:
    def to(url: str) -> str | None:
        return f"/m/{index_pages.name_of(url)}" if index_pages.is_file(url) else None

    assert index_pages.relinked(before.encode(), "text/html", PAGE, to).decode() == after


def test_what_is_no_page_is_refused() -> None:
    for data in (b"", b"[]", b'{"files": [{}]}', content(1, 100)):
        with pytest.raises(ValueError, match="no page of an index"):
            index_pages.links(data, JSON, PAGE)
