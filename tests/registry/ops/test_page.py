"""The status page in a real browser: it updates, fits a phone, and takes no text for markup."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from shmstream import Store
from shmstream.registry.ops.history import History
from tests.support.docker_registry import program
from tests.support.interpreters import wait_until
from tests.support.origin import Origin
from tests.support.serving import Serve, Serving
from tests.support.stores import digest

MIB = 1 << 20
SIZE = 10 * MIB
SLOW = {"rate": MIB, "stall_after": 9 * MIB}
HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>' + "w" * 90


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage", "no-proxy-server", f"user-data-dir={tmp_path / 'browser'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(program("chromedriver", "chromium-driver")))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Page:
    """The status page, as a person sees it."""

    def __init__(self, browser: webdriver.Chrome, serving: Serving) -> None:
        self.browser = browser
        browser.get(f"http://{serving.host}:{serving.port}/")

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def text(self, id_: str) -> str:
        return str(self.run(f"document.getElementById('{id_}').innerText"))

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page as on a device of that size."""
        size = {"width": width, "height": height}
        device = {**size, "deviceScaleFactor": 2, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def widths(self) -> list[float]:
        """How much of each bar is filled, from 0 to 1."""
        fill = "bar.firstChild.getBoundingClientRect().right - bar.getBoundingClientRect().left"
        bars = "[...document.querySelectorAll('[role=progressbar]')]"
        return list(self.run(f"{bars}.map(bar => ({fill}) / bar.getBoundingClientRect().width)"))

    def tells_widths(self) -> bool:
        """Whether the number of each bar is how much is filled; a bar takes a moment to grow."""
        told = self.run("[...document.querySelectorAll('.track')].map(each => each.ariaValueNow)")
        pairs = zip(told, self.widths(), strict=True)
        return all(abs(int(each) / 100 - width) < 0.1 for each, width in pairs)

    def sticks_out(self) -> list[str]:
        """The elements that are wider than the window, or cut off."""
        return list(
            self.run(
                "[...document.querySelectorAll('body *')].filter(each => {"
                " const box = each.getBoundingClientRect();"
                " return !each.closest('.track, svg, noscript') && box.width &&"
                " (box.right > innerWidth + 0.5 || box.left < -0.5"
                "  || each.scrollWidth > each.clientWidth + 1 && each.clientWidth);"
                "}).map(each => each.outerHTML.slice(0, 200))"
            )
        )

    def keep(self, name: str) -> None:
        """Save a picture, for people who want to look at it."""
        if folder := os.environ.get("SHMSTREAM_SCREENSHOTS"):
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def begin(serving: Serving, origin: Origin, seed: int, **behaviour: Any) -> Any:
    """A client of a blob in flight, which stays in flight with `SLOW`, until the origin goes on."""
    path = f"/v2/team/app/blobs/{digest(seed, SIZE)}"
    origin.serve(path, seed=seed, size=SIZE, **behaviour)
    return serving.open(path)


REMEMBERED = """(() => {
  const kept = [seen, last];
  seen = %s; last = seen.at(-1) || null;
  remember(%s);
  const found = seen.map((each) => [each.time, each.served]);
  [seen, last] = kept;
  return found;
})()"""


def check_history(page: Page) -> None:
    """What the page has seen stays where the server has no history; each sample is there once."""

    def remembered(
        seen: list[tuple[int, int]], history: list[tuple[int, int]], now: tuple[int, int]
    ) -> list[list[int]]:
        own = [{"time": time, "served": sum_, "upstream": 0} for time, sum_ in seen]
        told = [[time, sum_, 0] for time, sum_ in history]
        totals = {"served": now[1], "upstream": 0}
        snapshot = {"time": now[0], "totals": totals, "history": told}
        return list(page.run(REMEMBERED % (json.dumps(own), json.dumps(snapshot))))

    own = [(100, 1), (105, 2), (110, 3)]
    assert remembered(own, [], (160, 9)) == [[100, 1], [105, 2], [110, 3], [160, 9]]
    assert remembered(own, [(104, 2), (109, 3)], (160, 9)) == [[104, 2], [109, 3], [160, 9]]
    assert remembered(own, [(50, 0), (111, 4)], (160, 9)) == [[50, 0], [111, 4], [160, 9]]
    assert remembered(own, [(111, 4)], (160, 9))[:3] == [[100, 1], [105, 2], [111, 4]]
    assert remembered(own, [(90, 0)], (160, 9)) == [
        [90, 0], [100, 1], [105, 2], [110, 3], [160, 9],
    ]  # fmt: skip
    assert remembered(own, [], (160, 2)) == [[100, 1], [105, 2], [160, 2]], "or the counts began"
    assert remembered(own, [(120, 0), (125, 1)], (160, 2)) == [[120, 0], [125, 1], [160, 2]]
    assert remembered([], [], (160, 2)) == [[160, 2]]


def test_the_page(serve: Serve, origin: Origin, browser: webdriver.Chrome) -> None:
    serving = serve("--no-access-log", "--max-bytes", "10GiB", upstream=origin.url("").rstrip("/"))
    store = Store(serving.store)
    page = Page(browser, serving)
    wait_until(lambda: page.text("link") == "live")
    assert page.text("flights") == "Nothing is being pulled right now."
    page.keep("empty")

    clients: list[tuple[HTTPConnection, HTTPResponse]] = []
    clients.append(begin(serving, origin, 1))
    clients[0][1].read()
    assert clients[0][1].status == 200
    clients += [begin(serving, origin, seed, **SLOW) for seed in (2, 3)]
    clients += [serving.open(f"/v2/team/app/blobs/{digest(2, SIZE)}") for _ in range(6)]
    readers = [Thread(target=response.read) for _, response in clients[1:]]
    for reader in readers:
        reader.start()
    hostile = store.open(HOSTILE, origin.serve("/hostile", seed=4, size=SIZE, **SLOW))
    hostile.read(1)
    wait_until(lambda: len(page.widths()) == 3 and max(page.widths()) > 0)
    before = page.widths()
    wait_until(lambda: all(two > one for one, two in zip(before, page.widths(), strict=True)))
    wait_until(lambda: "/s · " in page.text("flights"))
    wait_until(lambda: page.text("served-rate").endswith("MiB/s"))
    wait_until(page.tells_widths)
    assert "of 10.0\xa0MiB" in page.text("flights")
    wait_until(lambda: digest(1, SIZE)[:23] in page.text("recent"))
    assert page.text("recent").startswith("team/app")
    wait_until(lambda: page.text("flights").count("team/app") == 2)

    # No text becomes markup.
    assert "<img src=x" in page.text("flights")
    assert page.run("window.harmed === undefined")
    assert page.run("document.querySelectorAll('img, main script').length") == 0

    # It fits every screen.
    for name, width, height, dark in [
        ("desktop", 1280, 900, False),
        ("desktop-dark", 1280, 900, True),
        ("phone", 360, 740, False),
        ("phone-dark", 360, 740, True),
        ("narrowest", 320, 600, False),
    ]:
        page.resize(width, height, dark=dark)
        page.keep(name)
        assert page.sticks_out() == [], name
        assert page.run("document.documentElement.scrollWidth") <= width

    # What a screen reader gets.
    assert page.run("document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')")
    assert page.run("document.documentElement.lang") == "en"

    origin.release()
    for reader in readers:
        reader.join()
    for connection, _ in clients:
        connection.close()
    hostile.close()
    wait_until(lambda: store.flights() == [])
    wait_until(lambda: page.text("flights") == "Nothing is being pulled right now.")

    # It connects again by itself.
    newest = page.run("seen.at(-1).time")
    for worker in serving.workers():
        os.kill(worker, 9)
    wait_until(lambda: page.text("link") == "live" and page.run("seen.at(-1).time") > newest)

    # Its chart begins before it was opened, whichever workers there are.
    [folder] = serving.temporary.iterdir()
    history = History(str(folder))
    wait_until(lambda: len(history.samples()) > 1 and history.samples()[-1].upstream > SIZE)
    opened = time.time()
    page = Page(browser, serving)
    wait_until(lambda: page.text("link") == "live")
    assert page.run("seen.length") > 1
    assert page.run("seen[0].time") < opened
    wait_until(lambda: page.text("peak").startswith("peak "))
    length = "document.getElementById('served-line').getTotalLength()"
    wait_until(lambda: page.run(length) > 0)
    check_history(page)
    for name, dark in (("history", False), ("history-dark", True)):
        page.resize(1280, 900, dark=dark)
        page.keep(name)

    # It says when the server has stopped, though the browser tries again each second.
    assert serving.stop() == 0
    wait_until(lambda: page.text("link") == "trying again")
    page.keep("stopped")
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [each for each in log if "events" not in each["message"]] == [], "no refused content"
