"""Rows as a table of aligned columns, for a terminal. Knows nothing of what they say."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """The table as text: columns in ``left`` begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(_cell(row[i], w, i in left) for i, w in enumerate(widths)).rstrip() for row in rows)


def _cell(text: str, width: int, is_left: bool) -> str:
    return text.ljust(width) if is_left else text.rjust(width)
