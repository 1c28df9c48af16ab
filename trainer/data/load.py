"""The training data of one run: read, split, rendered, tokenised to disk, and accounted for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from trainer.config.data import DataConfig
from trainer.data.conversations import ASSISTANT, TEXT, DroppedRow, Reading
from trainer.data.disk import Examples, TokenQuestions
from trainer.data.encoding import RowEncoder
from trainer.data.examples import Example
from trainer.data.holdout import Indices
from trainer.data.notes import notes_of
from trainer.data.parts import find_parts
from trainer.data.questions import Question, TokenQuestion
from trainer.data.rows import RawRow
from trainer.data.sources import find_recipe, find_test_source
from trainer.data.survey import EVERY, Progress, Survey, nothing_left, rows_at, survey
from trainer.data.templates import is_foreign
from trainer.errors import DataError

__all__ = ["TrainingData", "load_data", "load_questions"]


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    ``dropped`` counts rows by reason, ``cut`` rows by the limit at which something of them was cut off; ``sha256`` is
    over the files' bytes; ``notes`` say in words what was made of the data. ``questions`` is empty for plain text.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    questions: Sequence[TokenQuestion]
    sha256: str
    dropped: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_data(
    config: DataConfig, tokenizer: Any, end_ids: Sequence[int], seed: int, progress: Progress | None = None
) -> TrainingData:
    """Read, split, render and tokenise. Raises DataError in one line for everything that cannot be trained on."""
    config = with_recipe(config)
    rows = RowEncoder(config, tokenizer, end_ids)
    tokens = _Tokens(config, rows, progress)
    parts = find_parts(config, seed, progress)
    train, validation, questions = Examples(), Examples(), TokenQuestions()
    tokens.encode(parts.found, parts.split.train, train)
    if config.validation:
        tokens.encode(*parts.validating, validation, questions)
    hashes = "".join(one.source.sha256 for one in parts.surveys)
    dropped = sum((one.dropped for one in parts.surveys), tokens.dropped)
    return TrainingData(
        train=train,
        validation=validation,
        questions=questions,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        dropped=dict(dropped),
        cut=dict(tokens.cut),
        notes=notes_of(
            config,
            parts.surveys,
            foreign=is_foreign(config, tokenizer),
            stray_tail=rows.stray_tail,
            dropped=dropped,
            cut=tokens.cut,
            repeated=parts.split.repeated,
            shared=len(parts.overlapping),
        ),
    )


def load_questions(config: DataConfig, seed: int, split: Literal["validation", "test"]) -> list[Question]:
    """The rows that training with ``seed`` holds back, or those of ``data.test``, as questions to a server.

    Rows that training left out because of their tokens alone (too long) are asked too. Raises DataError.
    """
    config = with_recipe(config)
    if split == "test":
        found = survey(find_test_source(config), config)
        return [_question(row, reading, config) for row, reading in rows_at(found, found.usable, config)]
    if not config.validation:
        raise DataError("there are no validation rows (data.validation is 0)")
    found, indices = find_parts(config, seed).validating
    return [_question(row, reading, config) for row, reading in rows_at(found, indices, config)]


def with_recipe(config: DataConfig) -> DataConfig:
    """``config`` with the system prompt of its recipe, unless it has its own."""
    recipe = find_recipe(config)
    if recipe is None or config.system_prompt is not None:
        return config
    return msgspec.structs.replace(config, system_prompt=recipe.system_prompt)


class _Tokens:
    """Tokenises rows to disk, and counts what it drops and cuts."""

    def __init__(self, config: DataConfig, rows: RowEncoder, progress: Progress | None) -> None:
        self._config, self._rows, self._progress = config, rows, progress
        self.dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()

    def encode(
        self, found: Survey, indices: Indices, examples: Examples, questions: TokenQuestions | None = None
    ) -> None:
        """Append the rows of ``found`` at ``indices``. Raises DataError when none of them is usable."""
        mine: Counter[str] = Counter()
        what = f"tokenising {found.source.name}"
        for done, (_row, reading) in enumerate(rows_at(found, indices, self._config)):
            if self._progress and done % EVERY == 0:
                self._progress(what, done, len(indices))
            try:
                self._one(reading, examples, questions)
            except DroppedRow as reason:
                mine[str(reason)] += 1
        if self._progress:
            self._progress(what, len(indices), len(indices))
        if not len(examples):
            raise nothing_left(found.source.name, mine + found.dropped)
        self.dropped.update(mine)

    def _one(self, reading: Reading, examples: Examples, questions: TokenQuestions | None) -> None:
        encoded = self._rows.encode(reading)
        for example in encoded.examples:
            examples.append(example)
        self.cut.update(set(encoded.cut))
        if questions is not None and reading.conversation[0].role != TEXT:
            conversation, _ = self._rows.fit(reading)
            last = _last_answer(conversation)
            prompt = self._rows.renderer.prompt(conversation[:last], reading.tools)
            questions.append(TokenQuestion(tuple(self._rows.encoder.prompt_ids(prompt)), conversation[last].content))


def _question(row: RawRow, reading: Reading, config: DataConfig) -> Question:
    conversation = reading.conversation
    if conversation[0].role == TEXT:
        return Question(None, "", conversation[0].content, row.values)
    if reading.tools:
        raise DataError("data.tools: no server can be asked with tools; set data.tools: text")
    last = _last_answer(conversation)
    reference = conversation[last].content
    if config.template == "none":
        return Question(None, conversation[last - 1].content, reference, row.values)
    return Question(conversation[:last], None, reference, row.values)


def _last_answer(conversation: Iterable[Any]) -> int:
    return max(i for i, message in enumerate(conversation) if message.role == ASSISTANT)
