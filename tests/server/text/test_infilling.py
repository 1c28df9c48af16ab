"""What fills in the middle, with a real server and a tokenizer that has the marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.text.infilling import find_infilling
from server.text.tokenizer import TextProcessor
from tests.factory import make_base, make_tokenizer
from tests.server.live import live_server

FORMS = [
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("[PREFIX]", "[SUFFIX]"),
]


def base_with(path: Path, marks: tuple[str, ...]) -> Path:
    make_base(path, vocab_size=300)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(marks), special_tokens=True)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("marks", FORMS)
def test_knows_the_forms(tmp_path: Path, marks: tuple[str, ...]) -> None:
    text = TextProcessor.load(base_with(tmp_path / "base", marks))
    found = find_infilling(text, 300)
    assert found is not None
    before, behind, *middle = (text.token_id(mark) for mark in marks)
    wanted = [before, 1, behind, 2, *middle] if middle else [behind, 2, before, 1]
    assert found.ids([1], [2]) == wanted
    assert set(found.ends) >= {before, behind, *middle}
    assert text.token_id("<|endoftext|>") in found.ends
    assert find_infilling(text, 259) is None, "the model has no rows for the marks"


def test_fills_in_between_prompt_and_suffix(tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", FORMS[0])
    text = TextProcessor.load(base)
    marks = [text.token_id(mark) for mark in FORMS[0]]
    prompt, suffix = (text.encode(part, add_special_tokens=False) for part in ("def ", " ok"))
    ids = [marks[0], *prompt, marks[1], *suffix, marks[2]]
    given: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    ends = {"stop_token_ids": [*marks, text.token_id("<|endoftext|>")]}
    with live_server(base, tmp_path / "data") as live:
        filled = live.post("/v1/completions", {"prompt": "def ", "suffix": " ok", **given}).json()
        wanted = live.post("/v1/completions", {"prompt": ids, **given, **ends}).json()
        assert filled["choices"][0]["text"] == wanted["choices"][0]["text"]
        assert filled["usage"]["prompt_tokens"] == len(ids)
        alone = live.post("/v1/completions", {"prompt": "", "suffix": " ok", **given}).json()
        assert alone["usage"]["prompt_tokens"] == len(ids) - len(prompt)
        echoed = live.post("/v1/completions", {"prompt": "x", "suffix": "y", "echo": True})
        assert echoed.json()["error"]["param"] == "suffix"


def test_a_base_without_marks_says_so(tmp_path: Path) -> None:
    with live_server(make_base(tmp_path / "base"), tmp_path / "data") as live:
        error = live.post("/v1/completions", {"prompt": "x", "suffix": "y"}).json()["error"]
    assert error["param"] == "suffix"
    assert "fill in the middle" in error["message"]
