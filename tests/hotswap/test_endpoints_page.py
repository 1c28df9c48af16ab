"""docs/endpoints.md is what the code says."""

from __future__ import annotations

from pathlib import Path

from hotswap.endpoints_page import page

PAGE = Path(__file__).parents[2] / "docs" / "endpoints.md"


def test_the_page_is_as_the_code_says() -> None:
    written = page()
    assert PAGE.read_text(encoding="utf-8") == written, "make endpoints writes it"
    assert "## `POST /v1/chat/completions`" in written
    assert "| `messages` (required) |" in written
    assert "`use_beam_search`" in written
