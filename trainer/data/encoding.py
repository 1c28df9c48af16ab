"""Segments to token ids and labels, prompts cut to a number of tokens, and one row to what trains.

Segments are tokenised one by one, because a server tokenises a prompt without knowing the answer to come. Labels end
with the token that ends the turn: what a template writes after it is never generated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from trainer.config.data import DataConfig, TooLong
from trainer.data.conversations import TEXT, DroppedRow, ParsedRow
from trainer.data.messages import Conversation, TokenQuestion, last_answer
from trainer.data.rendering import Renderer, TextSegment, make_renderer, with_tool_form

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

    def prompt_ids(self, segment: TextSegment) -> list[int]:
        """Token ids of one segment."""
        ids: list[int] = self._backend.encode(segment.text, add_special_tokens=segment.special).ids
        return ids

    def ends(self, text: str) -> list[int]:
        """Where each token of ``text`` ends in it, in characters."""
        return [end for _start, end in self._backend.encode(text, add_special_tokens=False).offsets]

    def example(self, segments: Sequence[TextSegment]) -> Example:
        """The one example made of ``segments``. Raises DroppedRow."""
        return self.encode(segments).examples[0]

    def encode(self, segments: Sequence[TextSegment]) -> Encoded:
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

    def _part(self, segment: TextSegment, *, is_last: bool) -> tuple[list[int], int]:
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


class PromptLimit:
    """Keeps what stands before the last answer within ``limit`` tokens, the template's own included.

    The oldest turns go first, then the end of the last message; what the template writes around it stays whole.
    """

    def __init__(self, renderer: Renderer, encoder: Encoder, limit: int) -> None:
        self._renderer, self._encoder, self._limit = renderer, encoder, limit

    def fit(self, conversation: Conversation, tools: Sequence[Any]) -> Conversation:
        """``conversation``, the same object where it fits. Raises DroppedRow where no text of the prompt would stay."""
        if conversation[0].role == TEXT:
            return conversation
        while True:
            last = last_answer(conversation)
            prompt = self._renderer.prompt(conversation[:last], tools)
            over = len(self._encoder.prompt_ids(prompt)) - self._limit
            if over <= 0:
                return conversation
            shorter = _without_oldest_turn(conversation[:last]) or self._cut(conversation[:last], over)
            conversation = (*shorter, *conversation[last:])

    def _cut(self, before: Conversation, over: int) -> Conversation:
        """``before`` with the last message shorter by ``over`` tokens, or a little less."""
        content = before[-1].content
        ends = self._encoder.ends(content)
        kept = max(0, len(ends) - over)
        while kept and ends[kept - 1] >= len(content):
            kept -= 1  # several tokens of one character
        if not kept or not content[: ends[kept - 1]].strip():
            raise DroppedRow(f"nothing of the prompt's text fits into data.max_prompt_length {self._limit}")
        return (*before[:-1], replace(before[-1], content=content[: ends[kept - 1]]))


def _without_oldest_turn(before: Conversation) -> Conversation | None:
    """``before`` without its first question and the answers to it; None where there is only one question."""
    system = next((i for i, message in enumerate(before) if message.role != "system"), len(before))
    later = [i for i, message in enumerate(before) if i > system and message.role == "user"]
    return (*before[:system], *before[later[0] :]) if later else None


_UNLIMITED = 2**31 - 1


class RowEncoder:
    """Encodes rows as training with ``config`` does. Raises DataError for a template that cannot be used."""

    def __init__(self, config: DataConfig, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)  # clients do not see them; they may mark a thought
        config = with_tool_form(config, tokenizer)
        self.tools = config.tools
        self.renderer = make_renderer(config, tokenizer)
        self.encoder = Encoder(tokenizer, end_ids, config.max_length, config.too_long, config.max_response_length)
        self._kept_prompt = config.max_length - 1 if config.too_long == "cut_start" else _UNLIMITED
        limit = config.max_prompt_length
        self._prompt_limit = PromptLimit(self.renderer, self.encoder, limit) if limit else None
        tail = self.renderer.tail
        ends = set(self.encoder.prompt_ids(TextSegment(tail, learned=False))) & set(end_ids)
        self.stray_tail = "" if ends else tail.strip()
        """What the template writes after an answer, where it ends no turn."""

    def fit_prompt(self, parsed: ParsedRow) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation with a prompt as long as allowed, and the limit at which it was cut. Raises DroppedRow."""
        if self._prompt_limit is None:
            return parsed.conversation, ()
        fitted = self._prompt_limit.fit(parsed.conversation, parsed.tools)
        return fitted, () if fitted is parsed.conversation else ("max_prompt_length",)

    def encode(self, parsed: ParsedRow) -> Encoded:
        """The examples of a row, and the limits at which it was cut. Raises DroppedRow."""
        conversation, cut = self.fit_prompt(parsed)
        sequences = self.renderer.sequences(conversation, parsed.tools)
        encoded = [self.encoder.encode(segments) for segments in sequences]
        examples = [example for one in encoded for example in one.examples]
        return Encoded(tuple(examples), (*cut, *dict.fromkeys(key for one in encoded for key in one.cut)))

    def reference(self, conversation: Conversation, tools: Sequence[Any]) -> str:
        """The last answer as a server hands it out when the model says what it has learned. Raises DroppedRow."""
        last = last_answer(conversation)
        content = conversation[last].content
        said = self.renderer.said(conversation[: last + 1], tools).text
        ids = self.encoder.prompt_ids(TextSegment(said, learned=False))
        if said.strip() == content.strip() and self._special.isdisjoint(ids):
            return content
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) or content

    def question(self, parsed: ParsedRow) -> TokenQuestion:
        """The last answer of a row, and what it answers as far as a cut row keeps it. Raises DroppedRow."""
        conversation, _ = self.fit_prompt(parsed)
        ids = self.encoder.prompt_ids(self.renderer.prompt(conversation[: last_answer(conversation)], parsed.tools))
        wanted = self.reference(conversation, parsed.tools)
        room = max(1, self._kept_prompt - len(self.encoder.ends(wanted)))
        return TokenQuestion(tuple(ids[-room:]), wanted)


def without_row_limit(config: DataConfig) -> DataConfig:
    """``config`` without ``max_length``: only prompts and responses can be too long, each by itself."""
    return msgspec.structs.replace(config, max_length=_UNLIMITED, too_long="drop")


def without_limits(config: DataConfig) -> DataConfig:
    """``config`` under which nothing of a row is too long."""
    return msgspec.structs.replace(without_row_limit(config), max_prompt_length=None, max_response_length=None)
