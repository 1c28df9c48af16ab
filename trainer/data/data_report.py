"""What training would make of the data, counted, and as text for a terminal.

Reads, splits and encodes rows as training does.
"""

from __future__ import annotations

import contextlib
import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.config.data import DataConfig
from trainer.config.schema import TrainConfig
from trainer.data.conversations import ConversationReader, DroppedRow, ParsedRow
from trainer.data.encoding import IGNORED, Encoded, RowEncoder, without_limits
from trainer.data.messages import key_of
from trainer.data.rendering import is_foreign
from trainer.data.splits import PROGRESS_EVERY, DatasetSplits, Indices, Progress, Survey, nothing_left
from trainer.data.token_statistics import (
    LengthLimit,
    Lengths,
    VocabularyUse,
    length_limits,
    lengths_table,
    limit_of,
    suggested_limit,
    summarize,
    vocabulary_use,
)
from trainer.data.training_data import fitting, notes_of, split_conversations
from trainer.recipes.recipe import Split
from trainer.tables import aligned, counted

Splits = DatasetSplits[ConversationReader]
_PLACES_KEPT = 5  # places that are kept of every kind of finding
_OUTLIER = 4  # times the 95th percentile


class Finding(msgspec.Struct):
    """``count`` rows, and where the first of them are."""

    count: int = 0
    first: list[str] = []

    def add(self, where: str) -> None:
        """One more row."""
        self.count += 1
        if len(self.first) < _PLACES_KEPT:
            self.first.append(where)


class DataReport(msgspec.Struct, kw_only=True):
    """Of the data of one run. Lengths are in tokens, of rows before anything of them is cut or dropped.

    ``train`` and ``validation`` are examples. ``left_out`` rows are not used because of data.max_rows or
    data.duplicates. ``learned`` is the share of tokens that the loss is taken of. ``repeated`` rows equal an earlier
    one, ``overlapping`` ones to validate on equal one to train on, ``empty_answers`` are in rows beside others,
    ``ambiguous`` rows ask what another row asks and answer otherwise, ``unfinished`` ones end without a token that ends
    a turn, ``outliers`` are far longer than the rest. ``longest`` is the longest example as it is trained on. ``error``
    says why the data cannot be trained on.
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
    empty_answers: Finding
    ambiguous: int
    unfinished: Finding
    outliers: Finding
    vocabulary: VocabularyUse
    max_length: int
    longest: int
    error: str | None
    learned: float = 0.0
    read_lengths: Lengths | None = None
    learned_lengths: Lengths | None = None
    lengths: Lengths | None = None
    limits: list[LengthLimit] = []
    current_limit: LengthLimit | None = None
    suggested_max_length: int | None = None


def check_data_set(
    config: TrainConfig,
    tokenizer: Any,
    end_ids: Sequence[int],
    progress: Progress | None = None,
    *,
    splits: Splits | None = None,
) -> DataReport:
    """Count what training as ``config`` says would see, in its ``splits`` where they were found already.

    Raises DataError for files that cannot be read at all.
    """
    splits = splits or split_conversations(config.data, config.training.seed, progress)
    rows = RowEncoder(splits.config, tokenizer, end_ids)
    splits = fitting(splits, rows, config.training.seed)
    counts = _Counts(rows, splits.config, tokenizer, end_ids, progress)
    for found, used in splits.by_survey():
        counts.add(found, used, splits)
    return counts.report(splits, config.training.batch_size)


class _Counts:
    """Encodes rows and counts."""

    def __init__(
        self, rows: RowEncoder, config: DataConfig, tokenizer: Any, end_ids: Sequence[int], progress: Progress | None
    ) -> None:
        self._progress = progress
        self._rows, self._config, self._tokenizer, self._end_ids = rows, config, tokenizer, end_ids
        self._unlimited = RowEncoder(without_limits(config), tokenizer, end_ids)
        self._examples: Counter[str] = Counter()
        self._dropped: defaultdict[str, Finding] = defaultdict(Finding)
        self._unfit: defaultdict[str, Counter[str]] = defaultdict(Counter)  # of each part, by reason
        self._cut: defaultdict[str, Finding] = defaultdict(Finding)
        self._repeated, self._overlapping, self._unfinished = Finding(), Finding(), Finding()
        self._empty_answers = Finding()
        self._longest_example = 0
        self._lengths, self._learned = array("q"), array("q")
        self._longest: list[tuple[int, str]] = []
        self._ids: Counter[int] = Counter()
        self._asked, self._answered = array("q"), array("q")

    def add(self, found: Survey[ConversationReader], used: dict[Split, Indices], splits: Splits) -> None:
        """Count the rows of ``found``; ``used`` are those of each part."""
        part_of = np.zeros(found.rows, np.int8)
        for i, indices in enumerate(used.values(), 1):
            part_of[indices] = i
        repeated = _marked(found.rows, found.usable[_repeats(found.keys)])
        overlapping = _marked(found.rows, splits.overlapping if "validation" in used else np.zeros(0, np.int64))
        names: list[Split] = [*used]
        for number, row in enumerate(found.source.rows()):
            if self._progress and number % PROGRESS_EVERY == 0:
                self._progress(f"tokenising {found.source.name}", number, found.rows)
            try:
                parsed = found.reader.read(row)
                if repeated[number]:
                    self._repeated.add(row.where)
                if overlapping[number]:
                    self._overlapping.add(row.where)
                if part_of[number]:
                    self._encode(names[part_of[number] - 1], row.where, parsed)
            except DroppedRow as reason:
                self._dropped[str(reason)].add(row.where)

    def _encode(self, part: Split, where: str, parsed: ParsedRow) -> None:
        self._remember(parsed)
        try:
            encoded = self._rows.encode(parsed)
        except DroppedRow as reason:
            self._unfit[part][str(reason)] += 1
            with contextlib.suppress(DroppedRow):
                self._measure(where, self._unlimited.encode(parsed))
            raise
        if parsed.empty_answers:
            self._empty_answers.add(where)
        self._measure(where, self._unlimited.encode(parsed) if encoded.cut else encoded)
        self._examples[part] += len(encoded.examples)
        for limit in set(encoded.cut):
            self._cut[limit].add(where)
        for example in encoded.examples:
            self._longest_example = max(self._longest_example, len(example))
            self._ids.update(example.input_ids)
        if encoded.examples[-1].labels[-1] not in self._end_ids:
            self._unfinished.add(where)

    def _measure(self, where: str, encoded: Encoded) -> None:
        length = sum(map(len, encoded.examples))
        self._lengths.append(length)
        self._learned.append(sum(label != IGNORED for example in encoded.examples for label in example.labels))
        keep = heapq.heappush if len(self._longest) < _PLACES_KEPT else heapq.heappushpop
        keep(self._longest, (length, where))

    def _remember(self, parsed: ParsedRow) -> None:
        *asked, answer = parsed.conversation
        if asked:
            self._asked.append(hash(key_of(tuple(asked))))
            self._answered.append(hash(answer.content))

    def report(self, splits: Splits, batch_size: int) -> DataReport:
        """All that was counted."""
        report = DataReport(
            notes=self._notes(splits),
            rows=sum(found.rows for found in splits.surveys),
            train=self._examples["train"],
            validation=self._examples["validation"],
            left_out=len(splits.training_source.usable) - len(splits.split.train) - len(splits.split.validation),
            dropped=dict(self._dropped),
            cut=dict(self._cut),
            repeated=self._repeated,
            overlapping=self._overlapping,
            empty_answers=self._empty_answers,
            ambiguous=_ambiguous(self._asked, self._answered),
            unfinished=self._unfinished,
            outliers=Finding(),
            vocabulary=vocabulary_use(self._ids, self._tokenizer),
            max_length=self._config.max_length,
            longest=self._longest_example,
            error=self._error(splits),
        )
        if self._lengths:
            self._add_lengths(report, batch_size)
        return report

    def _error(self, splits: Splits) -> str | None:
        for found, used in splits.by_survey():
            for part in used:
                if not self._examples[part]:
                    return str(nothing_left(found.source.name, self._unfit[part] + splits.dropped_of(part), part))
        return None

    def _notes(self, splits: Splits) -> list[str]:
        return list(
            notes_of(
                self._config,
                splits.surveys,
                foreign=is_foreign(self._config, self._tokenizer),
                stray_tail=self._rows.stray_tail,
                insert=self._rows.renderer.insert,
                dropped=_numbers(self._dropped),
                cut=_numbers(self._cut),
                empty=self._empty_answers.count,
                split=splits.split,
                shared=self._overlapping.count,
            )
        )

    def _add_lengths(self, report: DataReport, batch_size: int) -> None:
        lengths, learned = np.asarray(self._lengths), np.asarray(self._learned)
        report.learned = round(float(learned.sum() / lengths.sum()), 4)
        report.lengths, report.learned_lengths = summarize(lengths), summarize(learned)
        report.read_lengths = summarize(lengths - learned)
        report.limits = length_limits(lengths, batch_size)
        report.suggested_max_length = suggested_limit(report.limits, len(lengths))
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


_BAR = 40  # characters of the longest one
_MANY_PIECES = 0.15
_LITTLE_LEARNED = 0.02


def report_text(report: DataReport) -> str:
    """``report`` for a terminal."""
    return "\n".join([*_head(report), *_findings(report), *_lengths(report), *_limits(report), *_verdict(report)])


def _head(report: DataReport) -> Iterator[str]:
    yield from report.notes
    left_out = f", {report.left_out:,} not used (data.max_rows, data.duplicates)" if report.left_out else ""
    yield f"{report.train:,} examples to train on, {report.validation:,} to validate on{left_out}"


def _findings(report: DataReport) -> Iterator[str]:
    for reason, finding in sorted(report.dropped.items()):
        yield f"dropped: {counted(finding.count)} {reason}{_places(finding)}"
    for key, finding in sorted(report.cut.items()):
        yield f"cut at data.{key}: {counted(finding.count)}{_places(finding)}"
    named = {
        "equal an earlier one": report.repeated,
        "to validate on are rows to train on as well": report.overlapping,
        "have empty answers, which are not learned": report.empty_answers,
        "end without a token that ends the turn, so the model learns to go on": report.unfinished,
        "are far longer than the rest": report.outliers,
    }
    for what, finding in named.items():
        if finding.count:
            yield f"unusual: {counted(finding.count)} {what}{_places(finding)}"
    yield from _unusual(report)


def _unusual(report: DataReport) -> Iterator[str]:
    use = report.vocabulary
    if report.ambiguous:
        yield f"unusual: {report.ambiguous:,} rows ask what another row asks, and answer otherwise"
    if use.unknown:
        yield f"unusual: {use.unknown:.2%} of the tokens are unknown to the tokenizer: the model cannot read them"
    if use.byte_pieces > _MANY_PIECES:
        yield (
            f"unusual: {use.byte_pieces:.0%} of the tokens are parts of one character: the base hardly knows this "
            "script, and rows are several times as long as with a base that does"
        )
    if report.lengths and report.learned < _LITTLE_LEARNED:
        yield f"unusual: only {report.learned:.2%} of the tokens are learned; most of the work goes into reading"


def _lengths(report: DataReport) -> Iterator[str]:
    if not (report.lengths and report.read_lengths and report.learned_lengths):
        return
    parts = {"read (prompt)": report.read_lengths, "learned (response)": report.learned_lengths, "both": report.lengths}
    yield "\n" + lengths_table("tokens a row", parts)
    yield f"{report.learned:.1%} of {report.vocabulary.tokens:,} tokens are learned\n"
    yield from _histogram(report.lengths)


def _histogram(lengths: Lengths) -> Iterator[str]:
    most = max(bar.count for bar in lengths.histogram)
    width = len(f"{lengths.max:,}")
    for bar in lengths.histogram:
        drawn = "█" * (round(_BAR * bar.count / most) or bool(bar.count))
        yield f"{bar.low:>{width},} to {bar.high:>{width},} {drawn} {bar.count:,}"


def _limits(report: DataReport) -> Iterator[str]:
    if not report.limits:
        return
    rows = [_limit(limit, "") for limit in report.limits]
    if report.current_limit:
        rows.append(_limit(report.current_limit, "(as configured)"))
    header = ("data.max_length", "rows longer", "padding", "shuffled", "packed", "")
    yield "\n" + aligned(header, rows, left=(0, 5))
    yield "padding: of batches of rows alike in length, as training makes them; of any rows; with training.packing"


def _limit(limit: LengthLimit, remark: str) -> tuple[str, ...]:
    shares = (f"{share:.1%}" for share in (limit.padding, limit.padding_shuffled, limit.padding_packed))
    return (f"{limit.max_length:,}", f"{limit.rows_longer:,}", *shares, remark)


def _verdict(report: DataReport) -> Iterator[str]:
    if report.suggested_max_length and report.suggested_max_length != report.max_length:
        yield f"suggested: data.max_length={report.suggested_max_length}"
    yield f"\nerror: {report.error}" if report.error else "\nthis data can be trained on"


def _places(finding: Finding) -> str:
    parts = [place.rpartition("/") for place in finding.first]
    alike = len({folder for folder, _slash, _name in parts}) == 1  # the report begins with the files' full names
    names = [name for _folder, _slash, name in parts] if alike else finding.first
    return f" ({', '.join(names)}{', ...' if finding.count > len(names) else ''})"
