"""Chromium, headless, as tests of pages drive it: the system's own, through playwright, which fetches nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
READY_MILLISECONDS = 60_000
# The page's own canvas is not read: Chromium has advice about that for the console.
_COPY = """const map = document.getElementById('treemap'), copy = document.createElement('canvas');
copy.width = map.width; copy.height = map.height;
const context = copy.getContext('2d', { willReadFrequently: true }); context.drawImage(map, 0, 0);"""


def find_browser() -> str:
    """The path of a Chromium; fails the test where there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.fail(
        f"no browser on the PATH (looked for {', '.join(NAMES)}). Get one: `make browser`, or on Debian and Ubuntu "
        "`apt-get install chromium`."
    )


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile."""
    path = find_browser()
    with sync_playwright() as playwright:
        browser = _launch(playwright, path)
        try:
            yield browser
        finally:
            browser.close()


def _launch(playwright: Playwright, path: str) -> Browser:
    return playwright.chromium.launch(executable_path=path, args=list(FLAGS))


@dataclass
class Visit:
    """A page that was opened, and what it did besides being shown."""

    page: Page
    console: list[str] = field(default_factory=list)
    """Errors, warnings, messages, uncaught exceptions."""
    requests: list[str] = field(default_factory=list)
    """Addresses asked for, that of the page itself included."""
    dialogs: list[str] = field(default_factory=list)

    def dismissed(self, dialog: Dialog) -> None:
        """Note a dialog and close it."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).inner_text()

    def ready_milliseconds(self) -> int:
        """From navigation to the first drawn map."""
        return int(self.page.evaluate("document.documentElement.dataset.ready"))

    def pixels(self) -> str:
        """A digest of what the map shows."""
        return self.page.evaluate(
            f"""() => {{ {_COPY} const d = context.getImageData(0, 0, copy.width, copy.height).data; let h = 0;
            for (let i = 0; i < d.length; i += 1) h = (h * 31 + d[i]) | 0; return `${{h}}`; }}"""
        )

    def colour_at(self, x: float, y: float) -> tuple[int, int, int]:
        """The map's colour at a place, given as shares of its width and height."""
        found = self.page.evaluate(
            f"""([x, y]) => {{ {_COPY} return Array.from(context.getImageData(
            Math.round(x * copy.width), Math.round(y * copy.height), 1, 1).data.slice(0, 3)); }}""",
            [x, y],
        )
        return found[0], found[1], found[2]

    def settle(self) -> None:
        """Wait for the end of a transition."""
        self.page.wait_for_timeout(450)


@contextmanager
def visit(browser: Browser, file: Path, *, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Visit]:
    """Open a file in a fresh context and wait for its map; `options` as of playwright's new_context."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        page = context.new_page()
        seen = Visit(page)
        page.on("console", lambda message: seen.console.append(message.text))
        page.on("pageerror", lambda error: seen.console.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("dialog", seen.dismissed)
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=READY_MILLISECONDS)
        yield seen
    finally:
        context.close()
