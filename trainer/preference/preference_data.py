"""The data of a preference run: rows as token ids, split and accounted for, and the held-out ones as questions.

Uses the renderer, the encoder and the split of supervised training. Knows no model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import msgspec

from trainer.base_model import load_vocabulary
from trainer.config.data import DataConfig
from trainer.config.preference import GrpoPreference, KtoPreference, PreferenceColumns
from trainer.config.schema import TrainConfig
from trainer.data.conversations import DroppedRow, ParsedRow, some_columns
from trainer.data.encoding import IGNORED, RowEncoder, without_row_limit
from trainer.data.messages import ASSISTANT, Conversation, Message, Question, said_in_text
from trainer.data.rendering import tool_form, with_tool_form
from trainer.data.rows import RawRow
from trainer.data.sources import find_test_source
from trainer.data.splits import Indices, Survey, find_splits, find_validation, rows_at
from trainer.errors import ConfigError, DataError
from trainer.preference.comparisons import ComparisonReader

Row = TypeVar("Row")


@dataclass(frozen=True)
class PairIds:
    """Token ids of a prompt and of the two answers to it, each with its end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def answers(self) -> dict[str, list[int]]:
        """Its answers by what they are."""
        return {"chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class JudgedIds:
    """Token ids of a prompt and of an answer to it that is good or not."""

    prompt: list[int]
    completion: list[int]
    good: bool

    @property
    def answers(self) -> dict[str, list[int]]:
        """Its answer by what it is."""
        return {"good" if self.good else "bad": self.completion}


@dataclass(frozen=True)
class PromptIds:
    """A prompt to be answered, as token ids, and the row that it is from."""

    prompt: list[int]
    row: dict[str, Any]

    @property
    def answers(self) -> dict[str, list[int]]:
        """None: the model gives its own."""
        return {}


@dataclass(frozen=True)
class PreferenceData(Generic[Row]):
    """What a run trains on. ``dropped`` counts rows by reason; ``sha256`` is over the files' bytes.

    ``columns`` are those that were read, ``unread`` the others; ``tools`` is how functions and calls were written, None
    where there were none.
    """

    train: list[Row]
    validation: list[Row]
    sha256: str
    dropped: dict[str, int]
    columns: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    tools: Literal["text", "template"] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest answer."""
        rows: list[Any] = [*self.train, *self.validation]
        return max(len(row.prompt) + max(map(len, row.answers.values()), default=0) for row in rows)


class PreferenceEncoder:
    """Rows to token ids within ``data.max_length``, prompt and answers as supervised training encodes them."""

    def __init__(self, config: DataConfig, answers: PreferenceColumns, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self._config = config
        config = with_tool_form(config, tokenizer)
        self.comparisons = ComparisonReader(config, answers)
        self._rows = RowEncoder(without_row_limit(config), tokenizer, end_ids)

    def pairs(self, row: RawRow) -> list[PairIds]:
        """The pair in ``row``. Raises DataError or DroppedRow."""
        pair = self.comparisons.pair(row)
        before, chosen = self._answer(pair.prompt, pair.chosen, pair.tools)
        again, rejected = self._answer(pair.prompt, pair.rejected, pair.tools)
        if before != again:
            raise DroppedRow("the chat template renders the prompt in another way for each answer")
        prompt, (chosen, rejected) = self._fit(before, [chosen, rejected])
        if chosen == rejected:
            raise DroppedRow("chosen and rejected are the same, as far as they are not cut off")
        return [PairIds(prompt, chosen, rejected)]

    def judged(self, row: RawRow) -> list[JudgedIds]:
        """The judgements in ``row``. Raises DataError or DroppedRow."""
        out = []
        for judged in self.comparisons.judged(row):
            before, answer = self._answer(judged.prompt, judged.completion, judged.tools)
            prompt, (completion,) = self._fit(before, [answer])
            out.append(JudgedIds(prompt, completion, judged.good))
        return out

    def prompts(self, row: RawRow) -> list[PromptIds]:
        """The prompt in ``row``. Raises DataError or DroppedRow."""
        prompt, tools = self.comparisons.prompt(row)
        if not any(message.content.strip() for message in prompt):
            raise DroppedRow("empty prompt")
        prompt = self._fit_prompt((*prompt, Message(ASSISTANT, "")), tools)[:-1]
        ids = self._rows.encoder.prompt_ids(self._rows.renderer.prompt(prompt, tools))
        return [PromptIds(self._fit(ids, [[]])[0], dict(row.values))]

    def _answer(self, prompt: Conversation, answer: Message, tools: tuple[Any, ...]) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the answer: earlier answers in the prompt are read, not learned."""
        *before, last = self._rows.renderer.segments(self._fit_prompt((*prompt, answer), tools), tools)
        example = self._rows.encoder.example([*(replace(segment, learned=False) for segment in before), last])
        start = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        return list(example.input_ids[:start]), list(example.input_ids[start:])

    def _fit_prompt(self, conversation: Conversation, tools: tuple[Any, ...]) -> Conversation:
        return self._rows.fit_prompt(ParsedRow(conversation, tools))[0]

    def _fit(self, prompt: list[int], answers: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """Cut the prompt's start, or the answers' ends, where ``data.too_long`` allows it. Raises DroppedRow."""
        limit, longest = self._config.max_length, max(len(answer) for answer in answers)
        over = len(prompt) + longest - limit
        if over <= 0:
            return prompt, answers
        if self._config.too_long == "cut_start" and over < len(prompt):
            return prompt[over:], answers
        if self._config.too_long == "cut_end" and len(prompt) < limit and longest:
            return prompt, [answer[: limit - len(prompt)] for answer in answers]
        raise DroppedRow(f"longer than data.max_length {limit}")


Encode = Callable[[RawRow], list[Row]]


class PreferenceReader(Generic[Row]):
    """Reads rows as the token ids that ``encode`` makes of them, which it keeps: making them is most of the work.

    A row is usable only if it can be encoded. What came from one row stays together in its group.
    """

    def __init__(self, encode: Encode[Row]) -> None:
        self._encode = encode
        self.groups: list[list[Row]] = []

    def read(self, row: RawRow) -> list[Row]:
        """The group of ``row``. Raises DataError or DroppedRow."""
        group = self._encode(row)
        self.groups.append(group)
        return group

    def key(self, group: list[Row]) -> bytes:
        """Bytes that are equal for equal groups."""
        return repr(group).encode()


def load_preferences(config: DataConfig, encode: Encode[Row], seed: int) -> PreferenceData[Row]:
    """Read, encode and split the rows of ``config``. Raises DataError in one line for what cannot be trained on."""
    splits = find_splits(config, seed, lambda: PreferenceReader(encode))
    hashes = [found.source.sha256 for found in splits.surveys]
    return PreferenceData(
        train=_rows_of(splits.training_source, splits.split.train),
        validation=_rows_of(*splits.validating),
        sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
        dropped=dict(sum((found.dropped for found in splits.surveys), Counter())),
    )


def _rows_of(found: Survey[PreferenceReader[Row]], indices: Indices) -> list[Row]:
    return [row for place in found.places(indices).tolist() for row in found.reader.groups[place]]


def _encoder_of(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> tuple[PreferenceEncoder, Encode[Any]]:
    """What makes token ids of a row of ``config``, as its training does."""
    preference = config.preference
    assert preference is not None
    columns = PreferenceColumns() if isinstance(preference, GrpoPreference) else preference.columns
    encoder = PreferenceEncoder(config.data, columns, tokenizer, end_ids)
    if isinstance(preference, GrpoPreference):
        return encoder, encoder.prompts
    return encoder, encoder.judged if isinstance(preference, KtoPreference) else encoder.pairs


def load_preference_data(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> PreferenceData[Any]:
    """The rows of ``config`` as its training reads and splits them. Raises DataError."""
    config = msgspec.structs.replace(config, data=with_tool_form(config.data, tokenizer))
    encoder, encode = _encoder_of(config, tokenizer, end_ids)
    data = load_preferences(config.data, encode, config.training.seed)
    read, seen = encoder.comparisons.read, encoder.comparisons.seen
    tools = tool_form(config.data) if encoder.comparisons.with_tools else None
    handed_on = isinstance(config.preference, GrpoPreference)  # to the reward, every column
    return replace(
        data,
        columns=tuple(read),
        unread=() if handed_on else tuple(name for name in seen if name not in read),
        tools=tools,
    )


def check_labels(config: TrainConfig, data: PreferenceData[Any]) -> None:
    """Raise ConfigError where ``data`` has too few kinds of labels for the training of ``config``."""
    if not isinstance(config.preference, KtoPreference) or len({row.good for row in data.train}) > 1:
        return
    held_back = {row.good for row in data.validation} - {row.good for row in data.train}
    others = " but for rows to validate on: lower data.validation" if held_back else ""
    raise ConfigError(f"data.path: kto needs both good and bad answers; all labels are the same{others}")


def columns_note(read: Sequence[str], unread: Sequence[str]) -> str:
    """Which columns were read, and which were not, in words."""
    return f"columns read: {some_columns(read)}" + (f"; not read: {some_columns(unread)}" if unread else "")


def preferred_answers(config: TrainConfig, split: Literal["validation", "test"]) -> list[Question]:
    """The rows that the run of ``config`` held back, or those of ``data.test``, with the preferred answers wanted.

    Rows of which only a bad answer is known are left out. Raises DataError, for GRPO too, whose rows have no answers.
    """
    preference = config.preference
    assert preference is not None
    if isinstance(preference, GrpoPreference):
        raise DataError("the rows of a grpo run have no answers to compare with; name others with --data FILE")
    reader = ComparisonReader(msgspec.structs.replace(config.data, tools="template"), preference.columns)
    pairs = not isinstance(preference, KtoPreference)
    out: list[Question] = []
    for raw in _raw_rows(config, split):
        for prompt, answer, tools in _preferred(reader, raw, pairs=pairs):
            text = prompt[-1].content if config.data.template == "none" else None
            sent = None if text is not None else prompt
            out.append(Question(sent, text, said_in_text(answer), raw.values, tools=tools))
    return out


def _raw_rows(config: TrainConfig, split: Literal["validation", "test"]) -> list[RawRow]:
    if split == "test":
        return list(find_test_source(config.data).rows())
    _encoder, encode = _encoder_of(config, *load_vocabulary(config))
    found, indices = find_validation(config.data, config.training.seed, lambda: PreferenceReader(encode))
    return [row for row, _group in rows_at(found, indices)]


def _preferred(
    reader: ComparisonReader, row: RawRow, *, pairs: bool
) -> Iterator[tuple[Conversation, Message, tuple[Any, ...]]]:
    try:
        if pairs:
            pair = reader.pair(row)
            yield pair.prompt, pair.chosen, pair.tools
        else:
            yield from ((one.prompt, one.completion, one.tools) for one in reader.judged(row) if one.good)
    except DroppedRow:
        return
