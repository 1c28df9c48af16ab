"""Segments to token ids and labels.

Segments are tokenised one by one, because a server tokenises a prompt without knowing the answer to come. Labels end
with the token that ends the turn: what a template writes after it is never generated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.data.rendering import DroppedRow, Segment

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of one row, and its labels: the same ids where they are learned, IGNORED elsewhere. Equal lengths."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


class Encoder:
    """Tokenises segments. ``end_ids`` are the tokens that end a turn; the first of them is added where none is."""

    def __init__(
        self, tokenizer: Any, end_ids: Sequence[int], max_length: int, too_long: Literal["drop", "cut_start", "cut_end"]
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end_ids = end_ids
        self._max_length = max_length
        self._too_long = too_long

    def prompt_ids(self, segment: Segment) -> list[int]:
        """Token ids of one segment."""
        ids: list[int] = self._backend.encode(segment.text, add_special_tokens=segment.special).ids
        return ids

    def example(self, segments: Sequence[Segment]) -> Example:
        """The example made of ``segments``. Raises DroppedRow."""
        ids: list[int] = []
        labels: list[int] = []
        for i, segment in enumerate(segments):
            part = self.prompt_ids(segment)
            learned = _end_of_turn(part, self._end_ids) if segment.learned else 0
            if i == len(segments) - 1:
                part = part[:learned] if learned else [*part, self._end_ids[0]]
            ids += part
            keep = (learned or len(part)) if segment.learned else 0
            labels += part[:keep] + [IGNORED] * (len(part) - keep)
        labels[0] = IGNORED  # nothing stands before it to predict it from
        return self._fit(ids, labels)

    def _fit(self, ids: list[int], labels: list[int]) -> Example:
        limit = self._max_length
        if len(ids) > limit:
            if self._too_long == "drop":
                raise DroppedRow(f"longer than data.max_length {limit}")
            cut = slice(-limit, None) if self._too_long == "cut_start" else slice(0, limit)
            ids, labels = ids[cut], labels[cut]
            labels[0] = IGNORED
        if all(label == IGNORED for label in labels):
            raise DroppedRow(f"no token of the response within data.max_length {limit}")
        return Example(tuple(ids), tuple(labels))


def _end_of_turn(ids: Sequence[int], end_ids: Collection[int]) -> int:
    """How many of ``ids`` to keep so that the last one ends the turn; 0 when none does."""
    return max((i + 1 for i, token in enumerate(ids) if token in end_ids), default=0)
