"""The training data of one run: files, columns, template, split, and an account of the rows that were dropped."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.data import DataConfig
from trainer.data.conversations import Conversation, Message, conversation_of, needed_columns
from trainer.data.examples import Encoder, Example
from trainer.data.rendering import ChatRenderer, DroppedRow, PlainRenderer, Renderer
from trainer.data.rows import DataFile, read_data_file
from trainer.errors import DataError


@dataclass(frozen=True)
class Question:
    """A validation row to be answered: token ids of the prompt, and the response wanted."""

    input_ids: tuple[int, ...]
    response: str


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on. ``dropped`` counts rows by reason; ``sha256`` is over the files' bytes."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    questions: tuple[Question, ...]
    sha256: str
    dropped: dict[str, int] = field(default_factory=dict)


def load_data(config: DataConfig, tokenizer: Any, end_ids: Sequence[int], seed: int) -> TrainingData:
    """Read, render, tokenise and split. Raises DataError in one line for everything that cannot be trained on."""
    renderer = make_renderer(config, tokenizer)
    encoder = Encoder(tokenizer, end_ids, config.max_length, config.too_long)
    train_file = read_data_file(Path(config.path), config.format, needed_columns(config.columns))
    files = [train_file]
    dropped: Counter[str] = Counter()
    rows = _encode(train_file, config, renderer, encoder, dropped)
    if isinstance(config.validation, str):
        files.append(read_data_file(Path(config.validation), config.format, needed_columns(config.columns)))
        train, held = rows, _encode(files[1], config, renderer, encoder, dropped)
    else:
        train, held = _split(rows, config.validation, seed)
    return TrainingData(
        train=tuple(row.example for row in train),
        validation=tuple(row.example for row in held),
        questions=tuple(_question(row, renderer, encoder) for row in held),
        sha256=hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest(),
        dropped=dict(dropped),
    )


def make_renderer(config: DataConfig, tokenizer: Any) -> Renderer:
    """The renderer that ``config`` asks for. Raises DataError when the base has no chat template."""
    return ChatRenderer(tokenizer) if config.template == "chat" else PlainRenderer()


def describe_dropped(dropped: dict[str, int]) -> str:
    """``dropped`` in words: ``3 rows: empty response; 1 row: ...``."""
    most_first = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} row{'s' if count > 1 else ''}: {reason}" for reason, count in most_first)


@dataclass(frozen=True)
class _Row:
    conversation: Conversation
    example: Example


def _encode(
    file: DataFile, config: DataConfig, renderer: Renderer, encoder: Encoder, dropped: Counter[str]
) -> list[_Row]:
    rows = []
    mine: Counter[str] = Counter()
    for raw in file.rows:
        conversation = conversation_of(file.path, raw, config)
        try:
            rows.append(_Row(conversation, encoder.example(renderer.segments(conversation))))
        except DroppedRow as reason:
            mine[str(reason)] += 1
    if not rows:
        raise DataError(f"{file.path} leaves nothing to learn from: {describe_dropped(dict(mine))}")
    dropped.update(mine)
    return rows


def _split(rows: list[_Row], validation: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Hold back a share (below 1) or a number of rows, drawn by ``seed``; both parts keep the order of the file."""
    if not validation:
        return rows, []
    count = int(validation) if validation >= 1 else max(1, round(validation * len(rows)))
    if count >= len(rows):
        raise DataError(
            f"data.validation wants {count} of {len(rows)} usable rows, which leaves none to train on; "
            "lower it, or set it to 0"
        )
    held = set(random.Random(seed).sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i not in held], [row for i, row in enumerate(rows) if i in held]


def _question(row: _Row, renderer: Renderer, encoder: Encoder) -> Question:
    last = max(i for i, message in enumerate(row.conversation) if message.role == "assistant")
    before: Sequence[Message] = row.conversation[:last]
    return Question(tuple(encoder.prompt_ids(renderer.prompt(before))), row.conversation[last].content)
