"""Fine-tuning jobs begin, are watched and end in a browser; a version shows how its loss fell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.console.browser import Watched

pytestmark = pytest.mark.slow
MINUTES_MS = 180_000.0


def test_a_job_is_watched_to_its_end(watched: Watched, page: Page, tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "red"}, {"role": "assistant", "content": "ok"}
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps({"messages": [question, answer]}) + "\n") * 24, encoding="utf-8")
    watched.open("jobs")
    expect(page.get_by_text("No fine-tuning jobs yet")).to_be_visible()
    page.get_by_role("button", name="New job").click()
    page.get_by_label("Training file").set_input_files(file)
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("Batch size").fill("4")
    page.get_by_label("Suffix").fill("mine")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("heading", name="ftjob-")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click(timeout=MINUTES_MS)
    expect(page.get_by_text("The job has successfully completed")).to_be_visible(timeout=MINUTES_MS)
    expect(page.get_by_role("img", name="Loss by step: training")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.get_by_role("link", name="ft:").click()
    page.get_by_role("button", name="Details version 1").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("img", name="Loss by step: training")).to_be_visible()
    expect(dialog).to_contain_text("Data, SHA-256")


def test_a_wrong_file_is_told_and_the_form_stays(watched: Watched, page: Page, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("no rows\n", encoding="utf-8")
    watched.open("jobs")
    page.get_by_role("button", name="New job").click()
    page.get_by_label("Training file").set_input_files(file)
    page.get_by_role("button", name="Begin").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text("HTTP 400")
    expect(dialog.get_by_role("button", name="Begin")).to_be_enabled()
