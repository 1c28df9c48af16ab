"""Conversations in which the assistant calls functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import hold_back, json_of, malformed

_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
_SYSTEM = (
    "You can call these functions; to call one, answer with <tool_call>, its name and arguments as JSON, "
    "and </tool_call>."
)


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / "glaive_toolcall_en_demo.json"
    try:
        rows = [{"messages": _messages(row)} for row in json_of(file)]
    except (KeyError, TypeError) as error:
        raise malformed(file) from error
    return hold_back(rows, split)


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": f"{_SYSTEM}\n{row['tools']}"}] if row["tools"] not in ("", "[]") else []
    return system + [{"role": _ROLES[turn["from"]], "content": _content(turn)} for turn in row["conversations"]]


def _content(turn: dict[str, str]) -> str:
    call = turn["from"] == "function_call"
    return f"<tool_call>\n{turn['value']}\n</tool_call>" if call else turn["value"]


TOOLCALL = Recipe(
    "toolcall", "conversations in which the assistant calls functions", _rows, ("train", "test"),
    ("rougeL", "exact_match"),
)  # fmt: skip
