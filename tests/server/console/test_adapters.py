"""Packages come, go live, get shares of the requests and go, by hand in a browser."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.api.support import archive
from tests.server.console.browser import ROOT_KEY, Watched
from tests.server.live import Live


def upload(page: Page, file: Path | list[Path], name: str | None = None, *, live: bool = True) -> None:
    """As somebody does who chooses an archive."""
    page.get_by_label("Choose an archive").set_input_files(file)
    if name is not None:
        page.get_by_label("Name", exact=True).fill(name)
    if not live:
        page.get_by_label("Make it live at once").uncheck()
    page.get_by_role("button", name="Upload").click()


def test_a_package_is_uploaded_replaced_shared_and_deleted(
    watched: Watched, page: Page, live: Live, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    packages = {name: tmp_path / f"{name}.tar" for name in ("shira-r1", "ia3")}
    for name, path in packages.items():
        path.write_bytes(archive(tiny_adapters[name], tmp_path))
    watched.open("adapters")
    expect(page.get_by_role("row", name="first")).to_be_visible()
    upload(page, packages["shira-r1"], "by-hand")
    expect(page.get_by_text("by-hand@1 was verified")).to_be_visible()
    page.get_by_role("link", name="by-hand").click()
    expect(page.get_by_role("heading", name="by-hand")).to_be_visible()

    upload(page, packages["ia3"], live=False)
    expect(page.get_by_text("by-hand@2 was verified")).to_be_visible()
    page.get_by_role("button", name="Canary version 2").click()
    slider = page.get_by_role("slider", name="Share of version 2")
    expect(slider).to_have_value("10")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    expect(page.get_by_text("version 1 (live) 85%, version 2 (canary) 15%")).to_be_visible()
    assert live.context.registry.traffic("by-hand").canaries[0].weight == 0.15

    page.get_by_role("button", name="Promote 2").click()
    expect(page.get_by_text("version 2 live", exact=True)).to_be_visible()
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("version 1 live", exact=True)).to_be_visible()
    page.get_by_role("button", name="Activate version 2").click()
    expect(page.get_by_text("version 2 live", exact=True)).to_be_visible()
    assert live.context.registry.live_number("by-hand") == 2

    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Details version 1")).to_have_count(0)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Adapters", exact=True)).to_be_visible()
    expect(page.get_by_role("row", name="by-hand")).to_have_count(0)
    assert "by-hand" not in live.context.registry.names()


def test_what_somebody_else_changed_meanwhile_is_not_changed(
    watched: Watched, page: Page, live: Live, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    """One who decides by what the page showed before is refused, told so, and shown what there is now."""
    with live.http(Authorization=f"Bearer {ROOT_KEY}") as http:
        for name in ("shira-r1", "ia3"):
            form = {"file": archive(tiny_adapters[name], tmp_path)}
            http.put("/v1/adapters/shared", params={"activate": str(name == "ia3")}, files=form).raise_for_status()
    page.clock.install()
    watched.open("adapters/shared")
    expect(page.get_by_text("version 2 live", exact=True)).to_be_visible()
    page.clock.pause_at(time.time() + 3600)  # it looks no more by itself, and shows what it saw last
    other = page.context.new_page()
    other.goto("/console#/adapters/shared")
    other.evaluate(f"sessionStorage.setItem('hotswap.key', {ROOT_KEY!r})")
    other.reload()
    other.get_by_role("button", name="Activate version 1").click()
    expect(other.get_by_text("version 1 live", exact=True)).to_be_visible()

    expect(page.get_by_text("version 2 live", exact=True)).to_be_visible()
    page.get_by_role("button", name="Delete version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    alert = page.get_by_role("dialog").get_by_role("alert")
    expect(alert).to_contain_text("Somebody else changed it. It has been read again: look at it, and decide anew.")
    expect(alert).to_contain_text("HTTP 412")
    page.keyboard.press("Escape")
    expect(page.get_by_text("version 1 live", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Delete version 1")).to_have_count(0)
    assert live.context.registry.live_number("shared") == 1

    page.get_by_role("button", name="Change").click()
    page.get_by_role("dialog").get_by_label("Priority").fill("3")
    other.get_by_role("button", name="Change").click()
    other.get_by_role("dialog").get_by_label("Tokens a minute").fill("500")
    other.get_by_role("button", name="Save").click()
    expect(other.get_by_text("Settings saved")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("Somebody else changed it")
    page.get_by_role("button", name="Save").click()  # having decided anew: what the other set stays
    expect(page.get_by_role("dialog")).to_have_count(0)
    settings = live.context.registry.settings("shared")
    assert (settings.priority, settings.limits.tokens_per_minute) == (3, 500)
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("version 2 live", exact=True)).to_be_visible()


@pytest.mark.slow
def test_old_versions_are_shown_when_they_are_wanted(
    watched: Watched, page: Page, live: Live, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    names = [*tiny_adapters][:13]
    with live.http(Authorization=f"Bearer {ROOT_KEY}") as http:
        for i, name in enumerate(names):
            form = {"file": archive(tiny_adapters[name], tmp_path)}
            query = {"activate": str(i == 0).lower(), "allow_noop": "true"}
            http.put("/v1/adapters/often", params=query, files=form).raise_for_status()
    watched.open("adapters/often")
    details = page.get_by_role("button", name="Details version")
    expect(details).to_have_count(11)  # the newest ten, and the one that is live
    expect(page.get_by_role("button", name="Details version 1", exact=True)).to_be_visible()
    page.get_by_role("button", name="Show all 13").click()
    expect(details).to_have_count(13)
    page.get_by_role("button", name="Show fewer").click()
    expect(details).to_have_count(11)


DROPPED = """([name, base64]) => {
  const dropped = new DataTransfer();
  dropped.items.add(new File([Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))], name));
  return dropped;
}"""


def test_a_package_is_dropped_on_the_page(
    watched: Watched, page: Page, live: Live, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    watched.open("adapters")
    data = base64.b64encode(archive(tiny_adapters["ia3"], tmp_path)).decode()
    dropped = page.evaluate_handle(DROPPED, ["by drop.tar", data])
    place = page.locator(".drop")
    place.dispatch_event("dragover", {"dataTransfer": dropped})
    expect(place).to_have_class("drop over")
    place.dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_label("Name", exact=True)).to_have_value("by-drop")
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text("by-drop@1 was verified")).to_be_visible()
    assert live.context.registry.live_number("by-drop") == 1


def test_a_refused_package_is_told_in_full(watched: Watched, page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no archive")
    watched.open("adapters")
    upload(page, broken, "broken")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server did not take the package")
    expect(alert).to_contain_text("HTTP 400")
    expect(alert).to_contain_text("request ")
    expect(page.get_by_role("row", name="broken")).to_have_count(0)
