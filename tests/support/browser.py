"""Headless Chromium for tests, by Playwright: opens a page at a width, collects what its console
says and requests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass
class OpenPage:
    """An open page."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Exceptions, and console messages of level error."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for."""

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        return self.page.evaluate(expression)


@contextmanager
def open_page(path: Path, *, width: int, height: int = 900) -> Iterator[OpenPage]:
    """Open an HTML file in Chromium `width` pixels wide, as a phone where that is less than 600;
    skips without Chromium."""
    from playwright.sync_api import sync_playwright

    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program) as browser,
    ):
        page = browser.new_page(viewport={"width": width, "height": height}, is_mobile=width < 600)
        opened = OpenPage(page)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on(
            "console",
            lambda message: opened.errors.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(path.resolve().as_uri())
        yield opened
