"""The base and adapters answer side by side, token by token."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.server.console.browser import Watched


def ask(page: Page, words: str) -> None:
    page.get_by_label("Most tokens").fill("6")
    page.get_by_label("Message", exact=True).fill(words)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("ended by")).to_have_count(2)


def test_base_and_adapter_answer_side_by_side(watched: Watched, page: Page) -> None:
    watched.open("playground/first")
    expect(page.get_by_role("region", name="Answers of first")).to_be_visible()
    ask(page, "who?")
    adapter = page.get_by_role("region", name="Answers of first")
    expect(adapter).to_contain_text("first@1")
    expect(adapter).to_contain_text("6 tokens")
    answer = adapter.get_by_role("group")
    tokens = answer.locator(".token")
    assert tokens.count() > 1
    answer.focus()
    expect(adapter.get_by_role("status")).to_contain_text("logprob")
    expect(tokens.nth(0)).to_have_class("token level-4 current")  # of 320 that are all unlikely
    answer.press("ArrowRight")
    expect(tokens.nth(1)).to_have_class("token level-4 current")

    page.get_by_text("Plain text").click()
    ask(page, "once upon")
    assert adapter.get_by_role("group").locator(".token").count() > 1


def test_what_a_model_refuses_stands_where_its_answer_would(watched: Watched, page: Page) -> None:
    watched.open("playground")
    page.get_by_label("Another model").fill("nobody@7")
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Message", exact=True).fill("who?")
    page.get_by_label("Message", exact=True).press("Control+Enter")
    alert = page.get_by_role("region", name="Answers of nobody@7").get_by_role("alert")
    expect(alert).to_contain_text("nobody")
    expect(alert).to_contain_text("HTTP 404 · model_not_found")
