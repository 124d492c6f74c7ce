"""Headless Chromium for tests: opens a page at a given width, collects what its console says and what it requests.

Spoken to over the browser's debugging pipe (Chrome DevTools Protocol), so no driver package is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-pipe")


@dataclass
class Page:
    """An open page."""

    errors: list[str] = field(default_factory=list)
    """Exceptions, and console messages of level error."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for."""
    _browser: _Pipe | None = None

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        assert self._browser is not None
        answer = self._browser.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")


class _Pipe:
    """Messages to and from the browser."""

    def __init__(self, page: Page, to_browser: int, from_browser: int) -> None:
        self.page, self.number, self.session = page, 0, None
        self.output, self.input = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self.buffer = b""
        self.seen: set[str] = set()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.output.write(json.dumps(message).encode() + b"\0")
        self.output.flush()
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = self.input.read1(1 << 16)  # type: ignore[attr-defined]
            assert part, "the browser has closed its pipe"
            self.buffer += part
        raw, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(raw)
        self.note(message.get("method", ""), message.get("params", {}))
        return message

    def note(self, method: str, params: dict[str, Any]) -> None:
        self.seen.add(method)
        if method == "Runtime.exceptionThrown":
            self.page.errors.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.page.errors.append(str([value.get("value") for value in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.page.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.page.requests.append(params["request"]["url"])


@contextmanager
def open_page(path: Path, *, width: int, height: int = 900) -> Iterator[Page]:
    """Open an HTML file in Chromium `width` pixels wide, as a phone where that is less than 600; skips without Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    # The browser's own processes may still write when it has been killed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads its pipe at descriptor 3 and writes at 4.
        command = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
        process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        page = Page()
        pipe = page._browser = _Pipe(page, to_browser, from_browser)
        try:
            target = next(t for t in pipe.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
            attached = pipe.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            pipe.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                pipe.call(f"{domain}.enable")
            pipe.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
            )
            pipe.seen.clear()
            pipe.call("Page.navigate", url=path.resolve().as_uri())
            while "Page.loadEventFired" not in pipe.seen:
                pipe.next()
            yield page
        finally:
            process.kill()
            process.wait()
            pipe.output.close()
            pipe.input.close()
