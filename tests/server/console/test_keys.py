"""Keys are made, used, changed and ended in a browser; a key sees what its scopes let it see."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.server.console.browser import Watched
from tests.server.live import Live


def test_a_key_is_made_shown_once_rotated_and_revoked(watched: Watched, page: Page, live: Live) -> None:
    watched.open("keys")
    page.get_by_role("button", name="New key").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Make the key").click()  # the browser asks for a name
    expect(dialog).to_be_visible()
    dialog.get_by_label("Name").fill("team")
    dialog.get_by_label("read-only").check()
    dialog.get_by_label("Adapters").fill("fir*, second")
    dialog.get_by_label("Requests a minute").fill("600")
    dialog.get_by_role("button", name="Make the key").click()
    secret = page.get_by_label("The secret", exact=True).input_value()
    page.get_by_role("button", name="I have it").click()
    row = page.get_by_role("row", name="team")
    expect(row).to_contain_text("fir*, second")
    expect(row).to_contain_text("600 requests a minute")
    assert secret not in page.content()
    with live.http(Authorization=f"Bearer {secret}") as http:
        assert [one["id"] for one in http.get("/v1/adapters").json()["data"]] == ["first@1"]

    page.get_by_role("button", name="Rotate team").click()
    page.get_by_label("The old secret works for").fill("0")
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    second = page.get_by_label("The secret", exact=True).input_value()
    assert second != secret
    page.get_by_role("button", name="I have it").click()
    page.get_by_role("button", name="Revoke team").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_have_count(0)
    with live.http(Authorization=f"Bearer {second}") as http:
        assert http.get("/v1/models").status_code == 401


def test_without_a_key_the_page_says_so_and_takes_one(watched: Watched, live: Live) -> None:
    page = watched.open("adapters")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("HTTP 401 · invalid_api_key")
    alert.get_by_role("button", name="Enter a key").click()
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use the key").click()
    expect(page.get_by_role("alert")).to_contain_text("the API key is missing or wrong")
    page.get_by_role("button", name="Key …").click()
    page.get_by_label("API key").fill("root-of-console")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row", name="first")).to_be_visible()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    page.get_by_role("button", name="Key …sole").click()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("alert")).to_contain_text("HTTP 401")
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.slow
def test_the_audit_is_filtered(watched: Watched, page: Page) -> None:
    watched.open("audit")
    expect(page.get_by_role("row", name="first@1")).to_contain_text("upload")
    page.get_by_label("Outcome").select_option("refused")
    expect(page.get_by_role("row", name="first@1")).to_have_count(0)
    page.get_by_label("Outcome").select_option("any")
    page.get_by_label("Name").fill("nobody")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing like that has happened")).to_be_visible()


def test_a_key_that_is_refused_is_not_tried_again_by_itself(watched: Watched) -> None:
    page = watched.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.install()
    watched.open("adapters")
    expect(page.get_by_role("alert")).to_contain_text("HTTP 401")
    expect(page.get_by_text("no key")).to_be_visible()
    before = len(asked)
    for _ in range(5):
        page.clock.fast_forward(10_000)
    page.get_by_role("link", name="Keys").click()  # whose request comes behind whatever else would have been sent
    expect(page.get_by_role("alert")).to_contain_text("The keys cannot be read")
    assert [url.rpartition("/")[2] for url in asked[before:] if not url.endswith(".svg")] == ["keys"]
