"""Segments to token ids and labels.

Segments are tokenised one by one, because a server tokenises a prompt without knowing the answer to come. Labels end
with the token that ends the turn: what a template writes after it is never generated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.data import TooLong
from trainer.data.conversations import DroppedRow
from trainer.data.rendering import Segment

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of one row, and its labels: the same ids where they are learned, IGNORED elsewhere. Equal lengths."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Encoded:
    """The examples of one row, and the limits at which something of it was cut, as the keys of the configuration."""

    examples: tuple[Example, ...]
    cut: tuple[str, ...] = ()


class Encoder:
    """Tokenises segments. ``end_ids`` are the tokens that end a turn; the first of them is added where none is."""

    def __init__(
        self,
        tokenizer: Any,
        end_ids: Sequence[int],
        max_length: int,
        too_long: TooLong,
        max_response_length: int | None = None,
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._end_ids = tuple(end_ids)
        self._max_length = max_length
        self._too_long = too_long
        self._max_response_length = max_response_length

    def prompt_ids(self, segment: Segment) -> list[int]:
        """Token ids of one segment."""
        ids: list[int] = self._backend.encode(segment.text, add_special_tokens=segment.special).ids
        return ids

    def ends(self, text: str) -> list[int]:
        """Where each token of ``text`` ends in it, in characters."""
        return [end for _start, end in self._backend.encode(text, add_special_tokens=False).offsets]

    def example(self, segments: Sequence[Segment]) -> Example:
        """The one example made of ``segments``. Raises DroppedRow."""
        return self.encode(segments).examples[0]

    def encode(self, segments: Sequence[Segment]) -> Encoded:
        """The examples made of ``segments``: one, or several where long texts are split. Raises DroppedRow."""
        ids: list[int] = []
        labels: list[int] = []
        cut = []
        for i, segment in enumerate(segments):
            is_last = i == len(segments) - 1
            part, wanted = self._part(segment, is_last=is_last)
            limit = self._max_response_length
            if limit and segment.answer and wanted > limit:
                # where more comes the end of the turn stays, not learned: the answer does not end here
                tail = part[wanted - 1 :] if part[wanted - 1] in self._end_ids and not is_last else []
                part, wanted = part[:limit] + tail, limit
                cut.append("max_response_length")
            ids += part
            labels += part[:wanted] + [IGNORED] * (len(part) - wanted)
        labels[0] = IGNORED  # nothing stands before it to predict it from
        if self._too_long == "split" and all(segment.whole for segment in segments):
            return self._in_pieces(ids, labels, cut)
        return self._fit(ids, labels, cut)

    def _part(self, segment: Segment, *, is_last: bool) -> tuple[list[int], int]:
        """Token ids of ``segment``, and how many of them are learned."""
        part = self.prompt_ids(segment)
        ends = _end_of_turn(part, self._end_ids) if segment.learned else 0
        if is_last and segment.whole and not segment.answer:  # a text may have ends within
            ends = len(part) if part and part[-1] in self._end_ids else 0
        if is_last:
            part = part[:ends] if ends else [*part, self._end_ids[0]]
        if not segment.learned:
            return part, 0
        return part, len(part) if segment.whole or not ends else ends

    def _fit(self, ids: list[int], labels: list[int], cut: list[str]) -> Encoded:
        limit = self._max_length
        if len(ids) > limit:
            if self._too_long in ("drop", "split"):
                raise DroppedRow(f"longer than data.max_length {limit}")
            kept = slice(-limit, None) if self._too_long == "cut_start" else slice(0, limit)
            ids, labels = ids[kept], labels[kept]
            labels[0] = IGNORED
            cut = [*cut, "max_length"]
        if labels.count(IGNORED) == len(labels):
            raise DroppedRow(f"no token of the response within data.max_length {limit}")
        return Encoded((Example(tuple(ids), tuple(labels)),), tuple(cut))

    def _in_pieces(self, ids: list[int], labels: list[int], cut: list[str]) -> Encoded:
        limit = self._max_length
        pieces = []
        for at in range(0, len(ids), limit):
            part = labels[at : at + limit]
            part[0] = IGNORED
            if len(part) > 1:
                pieces.append(Example(tuple(ids[at : at + limit]), tuple(part)))
        if not pieces:
            raise DroppedRow("one token alone has nothing to be predicted from")
        return Encoded(tuple(pieces), tuple(cut))


def _end_of_turn(ids: Sequence[int], end_ids: Collection[int]) -> int:
    """How many of ``ids`` to keep so that the last one ends the turn; 0 when none does."""
    return next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in end_ids), 0)
