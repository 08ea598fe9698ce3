"""Chromium without a window, for tests of pages."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
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

    def open(self, url: str, size: tuple[int, int], scheme: str = "light") -> None:
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def drop(self, content: bytes, name: str) -> None:
        """Drop a file on the page."""
        text = base64.b64encode(content).decode()
        self.value(
            f"(() => {{ const bytes = Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0)); const t = new DataTransfer();"
            f" t.items.add(new File([bytes], '{name}')); dispatchEvent(new DragEvent('drop', {{dataTransfer: t}})); }})()"
        )

    def screenshot(self, file: Path, whole: bool = False) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.to)
        os.close(self.fro)


@contextmanager
def chromium() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.close()
