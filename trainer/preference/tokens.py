"""Preference rows as token ids, split and accounted for, by the renderer and the encoder of supervised training."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from trainer.config.data import DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import ASSISTANT, Conversation, DroppedRow, Message
from trainer.data.examples import IGNORED, Encoder
from trainer.data.rendering import Renderer, make_renderer
from trainer.data.sources import Source, find_source, find_train_source
from trainer.data.survey import describe_dropped
from trainer.errors import DataError
from trainer.preference.rows import Rows

_UNLIMITED = 1 << 40
Row = TypeVar("Row")


@dataclass(frozen=True)
class PairIds:
    """Token ids of a prompt and of the two answers to it, each with its end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class JudgedIds:
    """Token ids of a prompt and of an answer to it that is good or not."""

    prompt: list[int]
    completion: list[int]
    good: bool


@dataclass(frozen=True)
class PromptIds:
    """A prompt to be answered, as token ids, and the row that it is from."""

    prompt: list[int]
    row: dict[str, Any]


@dataclass(frozen=True)
class PreferenceData(Generic[Row]):
    """What a run trains on. ``dropped`` counts rows by reason; ``sha256`` is over the files' bytes."""

    train: list[Row]
    validation: list[Row]
    sha256: str
    dropped: dict[str, int]


class Tokens:
    """Conversations to token ids within ``data.max_length``."""

    def __init__(self, config: DataConfig, answers: PreferenceColumns, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self._config = config
        self._rows = Rows(config.columns, answers, config.system_prompt)
        self._renderer: Renderer = make_renderer(config, tokenizer)
        self._encoder = Encoder(tokenizer, end_ids, _UNLIMITED, "drop")

    def pairs(self, where: str, row: dict[str, Any]) -> list[PairIds]:
        """The pair in ``row``. Raises DataError or DroppedRow."""
        pair = self._rows.pair(where, row)
        before, chosen = self._answer(pair.prompt, pair.chosen)
        again, rejected = self._answer(pair.prompt, pair.rejected)
        if before != again:
            raise DroppedRow("the chat template renders the prompt in another way for each answer")
        prompt, (chosen, rejected) = self._fit(before, [chosen, rejected])
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
        ids = self._encoder.prompt_ids(self._renderer.prompt(prompt))
        if not ids or not any(message.content.strip() for message in prompt):
            raise DroppedRow("empty prompt")
        return [PromptIds(self._fit(ids, [[]])[0], row)]

    def _answer(self, prompt: Conversation, answer: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the answer: earlier answers in the prompt are read, not learned."""
        *before, last = self._renderer.segments((*prompt, Message(ASSISTANT, answer)))
        example = self._encoder.example([*(replace(segment, learned=False) for segment in before), last])
        start = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        return list(example.input_ids[:start]), list(example.input_ids[start:])

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
    """Read, encode and split the rows of ``config``. Raises DataError in one line for what cannot be trained on.

    The validation rows are those that supervised training of the same file and seed holds back, where no row is
    dropped: the same draw over the usable rows.
    """
    dropped: Counter[str] = Counter()
    groups, sha256 = _read(find_train_source(config), encode, dropped)
    validation = find_source(config, "validation")
    if validation:
        held, more = _read(validation, encode, dropped)
        sha256 = hashlib.sha256((sha256 + more).encode()).hexdigest()
    else:
        assert not isinstance(config.validation, str)  # it would have a source
        groups, held = _split(groups, config.validation, seed)
    return PreferenceData(_flat(groups), _flat(held), sha256, dict(dropped))


def _read(
    source: Source, encode: Callable[[str, dict[str, Any]], list[Row]], dropped: Counter[str]
) -> tuple[list[list[Row]], str]:
    mine: Counter[str] = Counter()
    groups: list[list[Row]] = []
    for raw in source.rows():
        try:
            groups.append(encode(raw.where, dict(raw.values)))
        except DroppedRow as reason:
            mine[str(reason)] += 1
    if not groups:
        raise DataError(f"{source.name} leaves nothing to learn from: {describe_dropped(dict(mine))}")
    dropped.update(mine)
    return groups, source.sha256


def _split(groups: list[list[Row]], validation: float, seed: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """As supervised training splits its rows. What came from one row stays together."""
    if not validation:
        return groups, []
    count = int(validation) if validation >= 1 else max(1, round(validation * len(groups)))
    if count >= len(groups):
        raise DataError(
            f"data.validation wants {count} of {len(groups)} usable rows, which leaves none to train on; "
            "lower it, or set it to 0"
        )
    held = set(random.Random(seed).sample(range(len(groups)), count))
    return [g for i, g in enumerate(groups) if i not in held], [g for i, g in enumerate(groups) if i in held]


def _flat(groups: Iterable[list[Row]]) -> list[Row]:
    return [row for group in groups for row in group]


def _listed(answer: tuple[list[int], list[int]]) -> tuple[list[int], list[list[int]]]:
    return answer[0], [answer[1]]
