"""The report in a real browser, Chromium without a window, where there is one: on a phone, by keyboard, without network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESK, NEEDS_CHROMIUM, PHONE, Browser, chromium
from test_report import evaluate, project, write_report

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as it:
        yield it


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
    browser.open(report.as_uri(), size)
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
    browser.open(report.as_uri(), DESK)
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
    browser.open(report.as_uri(), DESK)
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
        browser.open(report.as_uri(), DESK, scheme)
        grounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        browser.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / f"{scheme}.png").stat().st_size > 10_000
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
