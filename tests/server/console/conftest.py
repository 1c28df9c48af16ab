"""One browser and one server for all tests of the console; every page is watched for what goes wrong in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.console.browser import ROOT_KEY, Watched, chromium, launch
from tests.server.live import Live, live_server


@pytest.fixture(scope="package")
def live(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A server with an admin key and the adapter "first"."""
    adapters = [("first", str(tiny_adapters["ia3"]))]
    data = tmp_path_factory.mktemp("console")
    with live_server(tiny_base, data, adapters=adapters, admin_key=ROOT_KEY, organization="acme") as made:
        yield made


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. While it runs no other loop can in this thread: so it ends with this folder's tests."""
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed (Debian's package: chromium)")
    with sync_playwright() as playwright:
        made = launch(playwright, program)
        yield made
        made.close()


@pytest.fixture
def watched(browser: Browser, live: Live) -> Iterator[Watched]:
    """A page that has no key yet; nothing went wrong in it at its end."""
    with browser.new_context(base_url=live.url, viewport={"width": 1280, "height": 900}) as context:
        yield (found := Watched(context, live.url))
        found.check()


@pytest.fixture
def page(watched: Watched) -> Page:
    """A page with the admin key."""
    watched.enter_key(ROOT_KEY)
    return watched.page
