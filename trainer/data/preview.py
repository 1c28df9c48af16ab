"""Rows as the model sees them, with what is learned marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trainer.data.conversations import ConversationReader, DroppedRow
from trainer.data.encoding import IGNORED, Example, RowEncoder
from trainer.data.splits import DatasetSplits, rows_at

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_GREEN, _DIM, _BOLD, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True)
class PreviewRow:
    """A row that trains: where it is and its examples; or why it is dropped."""

    where: str
    examples: tuple[Example, ...] = ()
    dropped: str | None = None


def preview(
    splits: DatasetSplits[ConversationReader], tokenizer: Any, end_ids: Sequence[int], count: int
) -> Iterator[PreviewRow]:
    """The first ``count`` rows to train on. Raises DataError where the template cannot be used."""
    rows = RowEncoder(splits.config, tokenizer, end_ids)
    for row, parsed in rows_at(splits.training_source, splits.split.train[:count]):
        try:
            yield PreviewRow(row.where, rows.encode(parsed).examples)
        except DroppedRow as reason:
            yield PreviewRow(row.where, dropped=str(reason))


def marked(example: Example, tokenizer: Any, *, colour: bool, ids: bool = False) -> str:
    """The text of ``example``: learned parts green, others dim, special tokens bold; without ``colour`` «learned».

    With ``ids`` every token stands with its number.
    """
    out = []
    pairs = zip(example.input_ids, example.labels, strict=True)
    for learned, group in groupby(pairs, lambda pair: pair[1] != IGNORED):
        style = (_GREEN if learned else _DIM) if colour else ""
        text = "".join(_texts([token for token, _label in group], tokenizer, style, ids))
        if colour:
            out.append(f"{style}{text}{_RESET}")
        else:
            out.append(f"«{text}»" if learned else text)
    return "".join(out)


def _texts(tokens: Sequence[int], tokenizer: Any, style: str, ids: bool) -> Iterator[str]:
    special = set(tokenizer.all_special_ids)
    for is_special, group in groupby(tokens, special.__contains__):
        together = list(group)
        for part in [[token] for token in together] if ids else [together]:  # a character can be several tokens
            text = _visible(tokenizer.decode(part, clean_up_tokenization_spaces=False))
            text += f"[{part[0]}]" if ids else ""
            yield f"{_BOLD}{text}{_RESET}{style}" if is_special and style else text


def _visible(text: str) -> str:
    """``text`` without characters that would move the terminal's cursor or change its colours."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)
