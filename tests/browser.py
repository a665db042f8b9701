"""A headless Chromium, asked through its DevTools protocol; tests that use it skip without one."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# No GPU and no sandbox of its own are needed; clips may play without a click.
FLAGS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--autoplay-policy=no-user-gesture-required", "--window-size=1300,900"),
)
PATIENCE = 60.0  # s, for what must come at last; a test passes as soon as it is there


class Browser:
    """One page."""

    def __init__(self, socket: Any):
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []  # that the page's console, its scripts or the browser told
        self._call("Runtime.enable")
        self._call("Log.enable")  # what was not found, or not allowed
        self._call("Page.enable")

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Its value as soon as it is true; fails where it never is."""
        end = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"never true: {expression}; errors: {self.errors}"
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"])[:500])
            told = answer.get("params", {})
            if answer.get("method") == "Runtime.consoleAPICalled" and told["type"] == "error":
                self.errors.append(str(told["args"])[:500])
            if answer.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
                self.errors.append(str(told["entry"])[:500])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """folder: for the browser's own files."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium is installed")
    client = pytest.importorskip("websockets.sync.client")
    profile = folder / "profile"
    process = subprocess.Popen(
        [found[0], *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not port_file.exists() or not port_file.read_text().strip():
            assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(entry for entry in json.load(answer) if entry["type"] == "page")
        with client.connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
