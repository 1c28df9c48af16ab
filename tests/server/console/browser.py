"""Headless Chromium for tests, and a page that is watched."""

from __future__ import annotations

import json
import os
import shutil

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, Request, expect

ROOT_KEY = "root-of-console"
SECONDS = 20.0  # that anything may take to appear: the machines that run tests are busy
_WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} forbids ${event.blockedURI} ${event.sample}`));
"""


def chromium() -> str | None:
    """The browser that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


def launch(playwright: Playwright, program: str) -> Browser:
    """Start it. Its sandbox refuses to be root."""
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=program, args=options)


class Watched:
    """A page, and what it complained of and asked of others. Refused requests are no complaints: tests provoke them."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        context.add_init_script(_WATCH)
        context.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)
        self.page: Page = context.new_page()
        self._url = url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def open(self, view: str = "") -> Page:
        """Show a view, by what stands behind the # in its address."""
        self.page.goto(f"/console#/{view}")
        return self.page

    def enter_key(self, key: str) -> None:
        """As if it had been entered before, and is again whenever the page is loaded."""
        self.page.add_init_script(f"sessionStorage.setItem('hotswap.key', {json.dumps(key)})")

    def check(self) -> None:
        """Fail where anything went wrong."""
        assert self.complaints == []
        assert self.foreign == []

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self._url, "blob:", "data:")):
            self.foreign.append(request.url)
