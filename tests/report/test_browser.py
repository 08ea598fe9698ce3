"""The report in a real browser, Chromium without a window, where there is one: on a phone, by keyboard, without network."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import evaluate, project, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
PHONE, DESK = (390, 844), (1280, 900)  # pixels


class Browser:
    """Chromium driven by its own protocol (chromedevtools.github.io) over a pair of pipes: no port, no other library."""

    def __init__(self, folder: str) -> None:
        to_read, self.to = os.pipe()
        self.fro, to_write = os.pipe()
        words = f"--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe --user-data-dir={folder}"
        command = f"exec {CHROMIUM} {words} about:blank 3<&{to_read} 4>&{to_write} 2>/dev/null"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_read, to_write))
        os.close(to_read)
        os.close(to_write)
        self.rest, self.count, self.events, self.session = b"", 0, [], ""  # type: ignore[var-annotated]
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.fro, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        return dict(json.loads(first))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        own = {"id": self.count, "method": method, "params": params}
        os.write(self.to, json.dumps(own | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self.message()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, file: Path, size: tuple[int, int], scheme: str = "light") -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=file.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.to)
        os.close(self.fro)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        it = Browser(folder)
        yield it
        it.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, before = tmp_path_factory.mktemp("browser") / "run", Path.cwd()
    project(root, names={1: "a_very_long_name_without_any_place_to_break_it_" * 3 + ".png"})
    os.chdir(root)
    evaluate()
    write_report()
    os.chdir(before)
    return root / "results/report.html"


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_sticks_out_and_nothing_is_fetched(browser: Browser, report: Path, size: tuple[int, int]) -> None:
    browser.open(report, size)
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    assert browser.value("innerWidth") == size[0]  # a phone zooms out where something is wider
    words = "[...document.querySelectorAll('p,td,th,li,figcaption,summary,a')]"
    assert browser.value(f"{words}.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length") == 0
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert urls
    assert all(u.startswith(("data:", "file:")) for u in urls)
    assert not [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_everything_can_be_reached_by_the_tab_key(browser: Browser, report: Path) -> None:
    browser.open(report, DESK)
    places = "[...document.querySelectorAll('a[href],summary,[tabindex=\"0\"]')].filter(e => e.checkVisibility())"
    count = browser.value(f"{places}.length")  # what is folded away is not reached before it is opened
    assert count > 20
    seen, where = [], "(e => `${e.tagName} ${e.getAttribute('href') || e.getAttribute('aria-label') || e.textContent}`)"
    visible = "(e => getComputedStyle(e).outlineStyle !== 'none' || e.className === 'skip')(document.activeElement)"
    for _ in range(count):
        browser.press("Tab", 9)
        seen.append(browser.value(f"{where}(document.activeElement)"))
        assert browser.value(visible), seen[-1]
    assert len(set(seen)) >= 0.8 * count  # some have the same words
    assert seen[0] == "A #main"
    browser.open(report, DESK)
    browser.press("Tab", 9)
    browser.press("Enter", 13)
    assert browser.value("location.hash") == "#main"
    browser.press("Tab", 9)
    assert browser.value("document.querySelector('main').contains(document.activeElement)")
    browser.value("document.querySelector('details:not([open])>summary').focus()")
    folded = browser.value("document.querySelectorAll('details[open]').length")
    browser.press("Enter", 13)
    assert browser.value("document.querySelectorAll('details[open]').length") == folded + 1


def test_it_is_dark_where_the_reader_likes_it_dark(browser: Browser, report: Path, tmp_path: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(report, DESK, scheme)
        grounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        browser.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / f"{scheme}.png").stat().st_size > 10_000
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
