"""What training would make of the data, counted: reads, splits and encodes rows as training does."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.config.data import DataConfig
from trainer.config.schema import TrainConfig
from trainer.data.conversations import DroppedRow, Reading, read_row
from trainer.data.encoding import RowEncoder, without_limits
from trainer.data.examples import IGNORED, Encoded
from trainer.data.holdout import Indices
from trainer.data.lengths import Lengths, Limit, limit_of, limits, suggested, summarize
from trainer.data.load import with_recipe
from trainer.data.messages import key_of
from trainer.data.notes import notes_of
from trainer.data.parts import Parts, find_parts
from trainer.data.survey import EVERY, Progress, Survey, nothing_left
from trainer.data.templates import is_foreign
from trainer.data.vocabulary import VocabularyUse, vocabulary_use

_SHOWN = 5  # places that are kept of every kind of finding
_OUTLIER = 4  # times the 95th percentile


class Finding(msgspec.Struct):
    """``count`` rows, and where the first of them are."""

    count: int = 0
    first: list[str] = []

    def add(self, where: str) -> None:
        """One more row."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(where)


class DataReport(msgspec.Struct, kw_only=True):
    """Of the data of one run. Lengths are in tokens, of rows before anything of them is cut or dropped.

    ``train`` and ``validation`` are examples. ``left_out`` rows are not used because of data.max_rows or
    data.duplicates. ``learned`` is the share of tokens that the loss is taken of. ``repeated`` rows equal an earlier
    one, ``overlapping`` ones to validate on equal one to train on, ``ambiguous`` ones ask what another row asks and
    answer otherwise, ``unfinished`` ones end without a token that ends a turn, ``outliers`` are far longer than the
    rest. ``error`` says why the data cannot be trained on.
    """

    notes: list[str]
    rows: int
    train: int
    validation: int
    left_out: int
    dropped: dict[str, Finding]
    cut: dict[str, Finding]
    repeated: Finding
    overlapping: Finding
    ambiguous: int
    unfinished: Finding
    outliers: Finding
    vocabulary: VocabularyUse
    max_length: int
    error: str | None
    learned: float = 0.0
    read_lengths: Lengths | None = None
    learned_lengths: Lengths | None = None
    lengths: Lengths | None = None
    limits: list[Limit] = []
    current_limit: Limit | None = None
    suggested_max_length: int | None = None


def check_data_set(
    config: TrainConfig,
    tokenizer: Any,
    end_ids: Sequence[int],
    progress: Progress | None = None,
    *,
    parts: Parts | None = None,
) -> DataReport:
    """Count what training as ``config`` says would see, in its ``parts`` where they were found already.

    Raises DataError for files that cannot be read at all.
    """
    parts = parts or find_parts(with_recipe(config.data), config.training.seed, progress)
    counts = _Counts(parts.config, tokenizer, end_ids, progress)
    for found, used in parts.by_survey():
        counts.add(found, used, parts)
    return counts.report(parts, config.training.batch_size)


class _Counts:
    """Encodes rows and counts."""

    def __init__(self, config: DataConfig, tokenizer: Any, end_ids: Sequence[int], progress: Progress | None) -> None:
        self._progress = progress
        self._config, self._tokenizer, self._end_ids = config, tokenizer, end_ids
        self._rows = RowEncoder(config, tokenizer, end_ids)
        self._unlimited = RowEncoder(without_limits(config), tokenizer, end_ids)
        self._examples: Counter[str] = Counter()
        self._dropped: defaultdict[str, Finding] = defaultdict(Finding)
        self._cut: defaultdict[str, Finding] = defaultdict(Finding)
        self._repeated, self._overlapping, self._unfinished = Finding(), Finding(), Finding()
        self._lengths, self._learned = array("q"), array("q")
        self._longest: list[tuple[int, str]] = []
        self._ids: Counter[int] = Counter()
        self._asked, self._answered = array("q"), array("q")

    def add(self, found: Survey, used: dict[str, Indices], parts: Parts) -> None:
        """Count the rows of ``found``; ``used`` are those of each part."""
        part_of = np.zeros(found.rows, np.int8)
        for i, indices in enumerate(used.values(), 1):
            part_of[indices] = i
        repeated = _marked(found.rows, found.usable[_repeats(found.keys)])
        overlapping = _marked(found.rows, parts.overlapping if "validation" in used else np.zeros(0, np.int64))
        names = ["", *used]
        for number, row in enumerate(found.source.rows()):
            if self._progress and number % EVERY == 0:
                self._progress(f"tokenising {found.source.name}", number, found.rows)
            try:
                reading = read_row(row, found.layout, self._config)
                if repeated[number]:
                    self._repeated.add(row.where)
                if overlapping[number]:
                    self._overlapping.add(row.where)
                if part_of[number]:
                    self._encode(names[part_of[number]], row.where, reading)
            except DroppedRow as reason:
                self._dropped[str(reason)].add(row.where)

    def _encode(self, part: str, where: str, reading: Reading) -> None:
        self._remember(reading)
        try:
            encoded = self._rows.encode(reading)
        except DroppedRow:
            self._measure(where, self._unlimited.encode(reading))
            raise
        self._measure(where, self._unlimited.encode(reading) if encoded.cut else encoded)
        self._examples[part] += len(encoded.examples)
        for limit in set(encoded.cut):
            self._cut[limit].add(where)
        for example in encoded.examples:
            self._ids.update(example.input_ids)
        if encoded.examples[-1].labels[-1] not in self._end_ids:
            self._unfinished.add(where)

    def _measure(self, where: str, encoded: Encoded) -> None:
        length = sum(map(len, encoded.examples))
        self._lengths.append(length)
        self._learned.append(sum(label != IGNORED for example in encoded.examples for label in example.labels))
        keep = heapq.heappush if len(self._longest) < _SHOWN else heapq.heappushpop
        keep(self._longest, (length, where))

    def _remember(self, reading: Reading) -> None:
        *asked, answer = reading.conversation
        if asked:
            self._asked.append(hash(key_of(tuple(asked))))
            self._answered.append(hash(answer.content))

    def report(self, parts: Parts, batch_size: int) -> DataReport:
        """All that was counted."""
        report = DataReport(
            notes=self._notes(parts),
            rows=sum(found.rows for found in parts.surveys),
            train=self._examples["train"],
            validation=self._examples["validation"],
            left_out=len(parts.found.usable) - len(parts.split.train) - len(parts.split.held),
            dropped=dict(self._dropped),
            cut=dict(self._cut),
            repeated=self._repeated,
            overlapping=self._overlapping,
            ambiguous=_ambiguous(self._asked, self._answered),
            unfinished=self._unfinished,
            outliers=Finding(),
            vocabulary=vocabulary_use(self._ids, self._tokenizer),
            max_length=self._config.max_length,
            error=self._error(parts),
        )
        if self._lengths:
            self._add_lengths(report, batch_size)
        return report

    def _error(self, parts: Parts) -> str | None:
        for found, used in parts.by_survey():
            for part in used:
                if not self._examples[part]:
                    return str(nothing_left(found.source.name, _numbers(self._dropped)))
        return None

    def _notes(self, parts: Parts) -> list[str]:
        return list(
            notes_of(
                self._config,
                parts.surveys,
                foreign=is_foreign(self._config, self._tokenizer),
                stray_tail=self._rows.stray_tail,
                dropped=_numbers(self._dropped),
                cut=_numbers(self._cut),
                repeated=parts.split.repeated,
                shared=self._overlapping.count,
            )
        )

    def _add_lengths(self, report: DataReport, batch_size: int) -> None:
        lengths, learned = np.asarray(self._lengths), np.asarray(self._learned)
        report.learned = round(float(learned.sum() / lengths.sum()), 4)
        report.lengths, report.learned_lengths = summarize(lengths), summarize(learned)
        report.read_lengths = summarize(lengths - learned)
        report.limits = limits(lengths, batch_size)
        report.suggested_max_length = suggested(report.limits, len(lengths))
        if report.lengths.min <= report.max_length:
            report.current_limit = limit_of(lengths, report.max_length, batch_size)
        far = _OUTLIER * report.lengths.p95
        first = [
            f"{where} ({length:,} tokens)" for length, where in sorted(self._longest, reverse=True) if length > far
        ]
        report.outliers = Finding(int((lengths > far).sum()), first)


def _numbers(findings: dict[str, Finding]) -> Counter[str]:
    return Counter({reason: finding.count for reason, finding in findings.items()})


def _repeats(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of ``keys`` were there before."""
    again = np.ones(len(keys), bool)
    again[np.unique(keys, return_index=True)[1]] = False
    return again


def _marked(rows: int, indices: Indices) -> npt.NDArray[np.bool_]:
    marks = np.zeros(rows, bool)
    marks[indices] = True
    return marks


def _ambiguous(asked: array[int], answered: array[int]) -> int:
    """How many rows ask what another row asks and answer otherwise."""
    if not asked:
        return 0
    pairs = np.unique(np.stack([np.asarray(asked), np.asarray(answered)]), axis=1)
    questions, answers = np.unique(pairs[0], return_counts=True)
    return int(np.isin(np.asarray(asked), questions[answers > 1]).sum())
