"""A reward that a tiny model learns to raise: how many letters of a row's alphabet its answer has, of eight."""

from __future__ import annotations

from typing import Any


def letter_share(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    pairs = zip(completions, rows, strict=True)
    return [sum(letter in row["letters"] for letter in text) / 8 for text, row in pairs]


def too_few(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [0.0]
