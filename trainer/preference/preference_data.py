"""The data of a preference run: rows as token ids, split and accounted for, and the held-out ones as questions.

Uses the renderer and the encoder of supervised training. Knows no model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from trainer.base_model import load_vocabulary
from trainer.config.data import DataConfig
from trainer.config.preference import GrpoPreference, KtoPreference, PreferenceColumns
from trainer.config.schema import TrainConfig
from trainer.data.conversations import DroppedRow
from trainer.data.encoding import IGNORED, Encoder, PromptLimit
from trainer.data.messages import ASSISTANT, Conversation, Message, Question
from trainer.data.rendering import Renderer, make_renderer
from trainer.data.rows import RawRow
from trainer.data.sources import Source, find_source, find_test_source, find_train_source
from trainer.data.splits import Keys, RowSplit, describe_dropped, split_rows
from trainer.errors import DataError
from trainer.preference.comparisons import ComparisonReader

_UNLIMITED = 1 << 40
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
    """What a run trains on. ``dropped`` counts rows by reason; ``sha256`` is over the files' bytes."""

    train: list[Row]
    validation: list[Row]
    sha256: str
    dropped: dict[str, int]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest answer."""
        rows: list[Any] = [*self.train, *self.validation]
        return max(len(row.prompt) + max(map(len, row.answers.values()), default=0) for row in rows)


class PreferenceEncoder:
    """Conversations to token ids within ``data.max_length``."""

    def __init__(self, config: DataConfig, answers: PreferenceColumns, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self._config = config
        self._rows = ComparisonReader(config.columns, answers, config.system_prompt, config.prompt_prefix)
        self._renderer: Renderer = make_renderer(config, tokenizer)
        self._encoder = Encoder(tokenizer, end_ids, _UNLIMITED, "drop", config.max_response_length)
        limit = config.max_prompt_length
        self._prompt_limit = PromptLimit(self._renderer, self._encoder, limit) if limit else None

    def pairs(self, where: str, row: dict[str, Any]) -> list[PairIds]:
        """The pair in ``row``. Raises DataError or DroppedRow."""
        pair = self._rows.pair(where, row)
        before, chosen = self._answer(pair.prompt, pair.chosen)
        again, rejected = self._answer(pair.prompt, pair.rejected)
        if before != again:
            raise DroppedRow("the chat template renders the prompt in another way for each answer")
        prompt, (chosen, rejected) = self._fit(before, [chosen, rejected])
        if chosen == rejected:
            raise DroppedRow("chosen and rejected are the same, as far as they are not cut off")
        return [PairIds(prompt, chosen, rejected)]

    def judged(self, where: str, row: dict[str, Any]) -> list[JudgedIds]:
        """The judgements in ``row``. Raises DataError or DroppedRow."""
        out = []
        for judged in self._rows.judged(where, row):
            prompt, (completion,) = self._fit(*_listed(self._answer(judged.prompt, judged.completion)))
            out.append(JudgedIds(prompt, completion, judged.good))
        return out

    def prompts(self, where: str, row: dict[str, Any]) -> list[PromptIds]:
        """The prompt in ``row``. Raises DataError or DroppedRow."""
        prompt = self._rows.prompt(where, row)
        if not any(message.content.strip() for message in prompt):
            raise DroppedRow("empty prompt")
        prompt = self._limited((*prompt, Message(ASSISTANT, "")))[:-1]
        ids = self._encoder.prompt_ids(self._renderer.prompt(prompt))
        return [PromptIds(self._fit(ids, [[]])[0], row)]

    def _answer(self, prompt: Conversation, answer: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the answer: earlier answers in the prompt are read, not learned."""
        conversation = self._limited((*prompt, Message(ASSISTANT, answer)))
        *before, last = self._renderer.segments(conversation)
        example = self._encoder.example([*(replace(segment, learned=False) for segment in before), last])
        start = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        return list(example.input_ids[:start]), list(example.input_ids[start:])

    def _limited(self, conversation: Conversation) -> Conversation:
        """``conversation`` with what stands before its last answer within ``data.max_prompt_length``."""
        return self._prompt_limit.fit(conversation, ()) if self._prompt_limit else conversation

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


def load_preferences(
    config: DataConfig, encode: Callable[[str, dict[str, Any]], list[Row]], seed: int
) -> PreferenceData[Row]:
    """Read, encode and split the rows of ``config``, as supervised training splits them over the usable rows.

    What came from one row stays together. Raises DataError in one line for what cannot be trained on.
    """
    dropped: Counter[str] = Counter()
    found = _read(find_train_source(config), encode, dropped)
    validation = find_source(config, "validation")
    held_from = _read(validation, encode, dropped) if validation else None
    split = _split(found, config, seed)
    held = held_from.groups if held_from else [found.groups[i] for i in split.held]
    hashes = found.sha256 + (held_from.sha256 if held_from else "")
    sha256 = hashlib.sha256(hashes.encode()).hexdigest() if held_from else hashes
    return PreferenceData(_flat(found.groups[i] for i in split.train), _flat(held), sha256, dict(dropped))


def held_out_rows(config: DataConfig, encode: Callable[[str, dict[str, Any]], list[Any]], seed: int) -> list[RawRow]:
    """The rows that ``load_preferences`` gives to validation, as they were read. Raises DataError."""
    source, own = find_train_source(config), find_source(config, "validation")
    found = _read(own or source, encode, Counter())
    if own:
        chosen = set(found.numbers)
    else:
        split = _split(found, config, seed)
        chosen = {found.numbers[i] for i in split.held}
    return [row for number, row in enumerate((own or source).rows()) if number in chosen]


@dataclass(frozen=True)
class _Read(Generic[Row]):
    """What the usable rows of a source came to; ``numbers`` says which row each group is of."""

    groups: list[list[Row]]
    numbers: list[int]
    sha256: str


def _read(source: Source, encode: Callable[[str, dict[str, Any]], list[Row]], dropped: Counter[str]) -> _Read[Row]:
    mine: Counter[str] = Counter()
    groups: list[list[Row]] = []
    numbers: list[int] = []
    for number, raw in enumerate(source.rows()):
        try:
            groups.append(encode(raw.where, dict(raw.values)))
            numbers.append(number)
        except DroppedRow as reason:
            mine[str(reason)] += 1
    if not groups:
        raise DataError(f"{source.name} leaves nothing to learn from: {describe_dropped(dict(mine))}")
    dropped.update(mine)
    return _Read(groups, numbers, source.sha256)


def _split(found: _Read[Row], config: DataConfig, seed: int) -> RowSplit:
    return split_rows(_keys(found.groups), np.arange(len(found.groups)), config, seed)


def _keys(groups: Sequence[object]) -> Keys:
    """A key for each group, equal for equal ones."""
    digests = [hashlib.blake2b(repr(group).encode(), digest_size=8).digest() for group in groups]
    return np.frombuffer(b"".join(digests), np.uint64)


def _flat(groups: Iterable[list[Row]]) -> list[Row]:
    return [row for group in groups for row in group]


def _listed(answer: tuple[list[int], list[int]]) -> tuple[list[int], list[list[int]]]:
    return answer[0], [answer[1]]


Encode = Callable[[str, dict[str, Any]], list[Any]]


def encoder_of(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> Encode:
    """What makes token ids of a row of ``config``, as its training does."""
    preference = config.preference
    assert preference is not None
    columns = PreferenceColumns() if isinstance(preference, GrpoPreference) else preference.columns
    tokens = PreferenceEncoder(config.data, columns, tokenizer, end_ids)
    if isinstance(preference, GrpoPreference):
        return tokens.prompts
    return tokens.judged if isinstance(preference, KtoPreference) else tokens.pairs


def load_preference_data(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> PreferenceData[Any]:
    """The rows of ``config`` as its training reads and splits them. Raises DataError."""
    return load_preferences(config.data, encoder_of(config, tokenizer, end_ids), config.training.seed)


def preferred_answers(config: TrainConfig, split: Literal["validation", "test"]) -> list[Question]:
    """The rows that the run of ``config`` held back, or those of ``data.test``, with the preferred answers wanted.

    Rows of which only a bad answer is known are left out. Raises DataError, for GRPO too, whose rows have no answers.
    """
    preference = config.preference
    assert preference is not None
    if isinstance(preference, GrpoPreference):
        raise DataError("the rows of a grpo run have no answers to compare with; name others with --data FILE")
    read = ComparisonReader(
        config.data.columns, preference.columns, config.data.system_prompt, config.data.prompt_prefix
    )
    pairs = not isinstance(preference, KtoPreference)
    out: list[Question] = []
    for raw in _raw_rows(config, split):
        for prompt, answer in _preferred(read, raw, pairs=pairs):
            text = prompt[-1].content if config.data.template == "none" else None
            out.append(Question(None if text is not None else prompt, text, answer, raw.values))
    return out


def _raw_rows(config: TrainConfig, split: Literal["validation", "test"]) -> list[RawRow]:
    if split == "test":
        return list(find_test_source(config.data).rows())
    if not config.data.validation:
        raise DataError("there are no validation rows (data.validation is 0)")
    return held_out_rows(config.data, encoder_of(config, *load_vocabulary(config)), config.training.seed)


def _preferred(read: ComparisonReader, raw: RawRow, *, pairs: bool) -> Iterator[tuple[Conversation, str]]:
    row = dict(raw.values)
    try:
        if pairs:
            pair = read.pair(raw.where, row)
            yield pair.prompt, pair.chosen
        else:
            yield from ((one.prompt, one.completion) for one in read.judged(raw.where, row) if one.good)
    except DroppedRow:
        return
