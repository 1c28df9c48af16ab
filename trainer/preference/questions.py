"""The held-out rows of a preference run as questions: its prompts, and the answers that people preferred."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from trainer.base_model import load_vocabulary
from trainer.config.preference import GrpoPreference, KtoPreference
from trainer.config.schema import TrainConfig
from trainer.data.conversations import Conversation, DroppedRow
from trainer.data.questions import Question
from trainer.data.rows import RawRow
from trainer.data.sources import find_test_source
from trainer.errors import DataError
from trainer.preference.load import encoder_of
from trainer.preference.rows import Rows
from trainer.preference.tokens import held_out_rows


def preferred_answers(config: TrainConfig, split: Literal["validation", "test"]) -> list[Question]:
    """The rows that the run of ``config`` held back, or those of ``data.test``, with the preferred answers wanted.

    Rows of which only a bad answer is known are left out. Raises DataError, for GRPO too, whose rows have no answers.
    """
    preference = config.preference
    assert preference is not None
    if isinstance(preference, GrpoPreference):
        raise DataError("the rows of a grpo run have no answers to compare with; name others with --data FILE")
    read = Rows(config.data.columns, preference.columns, config.data.system_prompt, config.data.prompt_prefix)
    pairs = not isinstance(preference, KtoPreference)
    out: list[Question] = []
    for raw in _rows(config, split):
        for prompt, answer in _wanted(read, raw, pairs=pairs):
            text = prompt[-1].content if config.data.template == "none" else None
            out.append(Question(None if text is not None else prompt, text, answer, raw.values))
    return out


def _rows(config: TrainConfig, split: Literal["validation", "test"]) -> list[RawRow]:
    if split == "test":
        return list(find_test_source(config.data).rows())
    if not config.data.validation:
        raise DataError("there are no validation rows (data.validation is 0)")
    return held_out_rows(config.data, encoder_of(config, *load_vocabulary(config)), config.training.seed)


def _wanted(read: Rows, raw: RawRow, *, pairs: bool) -> Iterator[tuple[Conversation, str]]:
    row = dict(raw.values)
    try:
        if pairs:
            pair = read.pair(raw.where, row)
            yield pair.prompt, pair.chosen
        else:
            yield from ((one.prompt, one.completion) for one in read.judged(raw.where, row) if one.good)
    except DroppedRow:
        return
