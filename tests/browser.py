"""A headless Chromium, spoken to over its DevTools protocol: enough to open a page, ask it things and look at it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REQUIRED: Final = "RATELIMIT_TEST_BROWSER"
"""Set it to `required`, and a missing browser fails the tests that need one."""
PATIENCE: Final = 120.0
_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--window-size=1400,1000",
)  # fmt: skip


class Page:
    """The one tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._next = 0
        self._events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, *, scheme: str = "light") -> None:
        """Until it has loaded, in light or dark."""
        self._events.clear()
        self.prefer(scheme)
        self._ask("Page.navigate", url=url)
        self._until("Page.loadEventFired")

    def prefer(self, scheme: str) -> None:
        """Have it light or dark."""
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """Have the window so large, as a phone's where it is narrow."""
        mobile = width < 600
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def evaluate(self, script: str) -> Any:
        """What an expression comes to; a promise is waited for."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """Of the whole page, as PNG."""
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    @property
    def complaints(self) -> list[str]:
        """What the console would show as a warning or an error, since the page was opened."""
        self.evaluate("new Promise(done => setTimeout(done, 50))")
        found = []
        for event in self._events:
            method, parameters = event["method"], event["params"]
            if method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
                found.append(parameters["entry"]["text"])
            elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed"):
                if parameters.get("canceled"):
                    continue
                found.append(f"{method}: {parameters}")
        return found

    @property
    def requests(self) -> list[str]:
        """Every URL that was fetched."""
        return [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == self._next:
                assert "error" not in message, message
                answer: dict[str, Any] = message["result"]
                return answer

    def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE))
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def browser(scratch: Path) -> Iterator[Page]:
    """One tab of a browser of its own, gone in the end; skips where none is installed, unless it is required."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)("no Chromium is installed here")
    with subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={scratch}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            with connect(
                _tab(scratch, process), max_size=None, open_timeout=PATIENCE, ping_interval=None, proxy=None
            ) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _tab(scratch: Path, process: subprocess.Popen[bytes]) -> str:
    """The address of the tab that it begins with."""
    from urllib.request import ProxyHandler, build_opener

    file, until = scratch / "DevToolsActivePort", time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} did not start: status {process.poll()}")
