"""What training would make of preference data: how many rows, how long, and rows as the model sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from trainer.config.schema import TrainConfig
from trainer.data.encoding import IGNORED, Example
from trainer.data.token_statistics import Lengths, lengths_table, summarize
from trainer.preference.preference_data import PreferenceData, columns_note
from trainer.tables import counted


class PreferenceReport(msgspec.Struct, kw_only=True):
    """Of the data of one run. ``dropped`` counts rows by reason, ``columns`` are those read, ``unread`` the others.
    ``error`` says why the data cannot be trained on.

    Lengths are in tokens, of the rows to train on: ``prompts``, and ``answers`` by what they are (chosen, rejected,
    good, bad), of which ``answer_counts`` there are.
    """

    kind: str
    train: int
    validation: int
    dropped: dict[str, int]
    columns: tuple[str, ...]
    unread: tuple[str, ...]
    prompts: Lengths
    answer_counts: dict[str, int]
    answers: dict[str, Lengths]
    error: str | None = None


def check_preferences(config: TrainConfig, data: PreferenceData[Any]) -> PreferenceReport:
    """``data``, counted and measured."""
    assert config.preference is not None
    lengths: dict[str, list[int]] = {}
    for row in data.train:
        for name, ids in row.answers.items():
            lengths.setdefault(name, []).append(len(ids))
    return PreferenceReport(
        kind=config.preference.KIND,
        train=len(data.train),
        validation=len(data.validation),
        dropped=data.dropped,
        columns=data.columns,
        unread=data.unread,
        prompts=summarize(np.array([len(row.prompt) for row in data.train])),
        answer_counts={name: len(found) for name, found in lengths.items()},
        answers={name: summarize(np.array(found)) for name, found in sorted(lengths.items())},
    )


def report_lines(report: PreferenceReport) -> Iterator[str]:
    """``report`` for a terminal."""
    if report.columns:
        yield columns_note(report.columns, report.unread)
    counts = "".join(f", {count:,} {name}" for name, count in sorted(report.answer_counts.items()))
    yield f"{report.kind}: {report.train:,} rows to train on{counts}; {report.validation:,} to validate on"
    for reason, count in sorted(report.dropped.items()):
        yield f"dropped: {counted(count)} {reason}"
    yield "\n" + lengths_table("tokens", {"prompt": report.prompts, **report.answers})
    if report.error:
        yield f"\nerror: {report.error}"


def examples_of(row: Any) -> dict[str, Example]:
    """A row's prompt with each of its answers, which is what training compares; of GRPO the prompt alone."""
    prompt = row.prompt
    ignored = (IGNORED,) * len(prompt)
    if not row.answers:
        return {"prompt": Example(tuple(prompt), ignored)}
    return {name: Example((*prompt, *ids), (*ignored, *ids)) for name, ids in row.answers.items()}
