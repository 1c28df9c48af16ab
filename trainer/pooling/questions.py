"""The rows held back, as a server that reads is asked them."""

from __future__ import annotations

import json
from functools import partial
from typing import Literal

from trainer.config.data import DataConfig
from trainer.config.task import ClassificationTask, EmbeddingTask, ReadingTask, TokenClassificationTask
from trainer.data.messages import Question
from trainer.data.sources import find_test_source, find_train_source, with_recipe
from trainer.data.splits import find_validation, rows_at, survey
from trainer.pooling.labels import LabelSet, label_set
from trainer.pooling.tagged import make_reader
from trainer.pooling.texts import TextReader, TextRow


def reading_questions(
    config: DataConfig, task: ReadingTask, seed: int, split: Literal["validation", "test"]
) -> tuple[tuple[Question, ...], str]:
    """The rows that training with ``seed`` holds back, or those of ``data.test``, and what they teach (PooledData).

    Raises DataError.
    """
    config = with_recipe(config)
    if split == "test":
        found = survey(find_test_source(config), make_reader(config, task), part="test")
        indices = found.usable
    else:
        found, indices = find_validation(config, seed, partial(make_reader, config, task))
    names = _names(config, task, found.reader)
    questions = []
    for row, parsed in rows_at(found, indices):
        first, *others = parsed.texts
        prompt, messages = (first, None) if isinstance(first, str) else (None, first)
        reference = _reference(parsed, several=bool(found.reader.several))
        questions.append(
            Question(messages, prompt, reference, row.values, tuple(map(str, others)), names, parsed.words)
        )
    return tuple(questions), _learned(task, found.reader)


def _learned(task: ReadingTask, reader: TextReader) -> str:
    """What the rows teach, as ``PooledData.learned``."""
    if isinstance(task, TokenClassificationTask):
        return LabelSet(tuple(reader.labels), of_words=True).teaches
    compared = isinstance(task, EmbeddingTask) and bool(reader.layout and reader.layout.target)
    return "similarity" if compared else task.KIND


def _names(config: DataConfig, task: ReadingTask, reader: TextReader) -> tuple[str, ...]:
    """The names of all classes by id, where a text has any number of them: a server numbers what it says of each."""
    if not isinstance(task, ClassificationTask) or not reader.several:
        return ()
    trained = survey(find_train_source(config), TextReader(config, task)).reader.labels
    return label_set(task, trained, (), several=True).names


def _reference(parsed: TextRow, *, several: bool) -> str:
    """As ``trainer.pooling.answers`` writes it; of texts that belong together the second one."""
    if parsed.target is None:
        return str(parsed.texts[1])
    if not isinstance(parsed.target, tuple):
        return repr(parsed.target)
    if parsed.words:
        return json.dumps(parsed.target, ensure_ascii=False)
    return json.dumps(sorted(parsed.target), ensure_ascii=False) if several else parsed.target[0]
