"""The data of a run whose task reads: split, tokenised to disk, and accounted for in words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainer.config.data import DataConfig
from trainer.config.task import ClassificationTask, EmbeddingTask, ReadingTask, TokenClassificationTask
from trainer.data.conversations import DroppedRow
from trainer.data.rows import RawRow
from trainer.data.sources import find_train_source, with_recipe
from trainer.data.splits import (
    PROGRESS_EVERY,
    DatasetSplits,
    Indices,
    Progress,
    Survey,
    describe_dropped,
    find_splits,
    nothing_left,
    rows_at,
)
from trainer.data.tags import place_and_kind
from trainer.errors import DataError
from trainer.pooling.examples import PooledExample, PooledExamples, TextEncoder
from trainer.pooling.labels import LabelSet, label_set, some_labels, tag_set
from trainer.pooling.tagged import make_reader
from trainer.pooling.texts import TextReader, TextRow
from trainer.recipes.recipe import Split
from trainer.tables import counted

Splits = DatasetSplits[TextReader]


@dataclass(frozen=True)
class PooledData:
    """What a run trains on. ``labels`` None: the task has no classes.

    ``counts`` are the rows to train on of each class, or the words of each tag; ``notes`` say in words what was made of
    the data; ``is_chat`` whether texts are conversations.
    """

    train: PooledExamples
    validation: PooledExamples
    sha256: str
    labels: LabelSet | None
    counts: Counter[str]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_chat: bool = False

    @property
    def learned(self) -> str:
        """What the rows teach: the task's name, tagging where tags are of single words and not of spans, or similarity
        where pairs have a score."""
        if self.labels is not None:
            return self.labels.teaches
        first = self.train[0]
        if len(first.texts) == 1:
            return "regression"
        return "embedding" if first.number is None else "similarity"

    @property
    def num_outputs(self) -> int:
        """How many numbers the head gives; 0 for vectors, which have no head."""
        if self.labels is not None:
            return len(self.labels.names)
        return int(self.learned == "regression")

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(text) for examples in (self.train, self.validation) for one in examples for text in one.texts)


def load_pooled_data(
    config: DataConfig, task: ReadingTask, tokenizer: Any, seed: int, progress: Progress | None = None
) -> PooledData:
    """Read, split and tokenise. Raises DataError in one line for everything that cannot be trained on."""
    config = with_recipe(config)
    splits = find_splits(config, seed, partial(make_reader, config, task), progress)
    labels = _labels(task, splits)
    tokens = _RowTokenizer(task, TextEncoder(config, tokenizer), labels, progress)
    train, validation = PooledExamples(), PooledExamples()
    tokens.encode("train", splits.training_source, splits.split.train, train, splits)
    if config.validation:
        tokens.encode("validation", *splits.validating, validation, splits)
    dropped = sum((one.dropped for one in splits.surveys), tokens.dropped)
    counts = tokens.counts["train"]
    if labels and not labels.several and len(counts) == 1:
        raise DataError(
            f"all rows to train on have the label {next(iter(counts))!r}; the others are held back: lower "
            "data.validation"
        )
    if len(validation) and labels and labels.of_spans and not any(map(place_and_kind, tokens.counts["validation"])):
        raise DataError("no row to validate on has a span, so none could be found; hold back more (data.validation)")
    return PooledData(
        train,
        validation,
        hashlib.sha256("".join(one.source.sha256 for one in splits.surveys).encode()).hexdigest(),
        labels,
        counts,
        dict(dropped),
        tuple(_notes(config, splits, tokens, dropped)),
        any(one.reader.layout is not None and one.reader.layout.is_chat for one in splits.surveys),
    )


def _labels(task: ReadingTask, splits: Splits) -> LabelSet | None:
    reader = splits.training_source.reader
    if isinstance(task, TokenClassificationTask):
        return tag_set(task, reader.labels, of_spans=not (reader.layout and reader.layout.is_words))
    if not isinstance(task, ClassificationTask):
        return None
    recipe: Sequence[str] = ()
    if splits.config.recipe:
        first = next(iter(find_train_source(splits.config).rows())).values
        recipe = first.get("labels", ())
    return label_set(task, reader.labels, recipe, several=bool(reader.several))


class _RowTokenizer:
    """Tokenises rows to disk, and counts what it drops and what is said of texts twice."""

    def __init__(
        self, task: ReadingTask, encoder: TextEncoder, labels: LabelSet | None, progress: Progress | None
    ) -> None:
        self._task, self._encoder, self.labels, self._progress = task, encoder, labels, progress
        self.dropped: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self._trained: dict[int, int] = {}  # texts by their hash, with that of what is wanted of them
        self.shared = self.ambiguous = self.sharing = self.inexact = 0

    def encode(
        self, part: Split, found: Survey[TextReader], indices: Indices, examples: PooledExamples, splits: Splits
    ) -> None:
        """Append the rows of ``found`` at ``indices``, of ``part``. Raises DataError when none of them is usable."""
        mine: Counter[str] = Counter()
        what = f"tokenising {found.source.name}"
        for done, (row, parsed) in enumerate(rows_at(found, indices)):
            if self._progress and done % PROGRESS_EVERY == 0:
                self._progress(what, done, len(indices))
            try:
                examples.append(self._example(row, parsed))
            except DroppedRow as reason:
                mine[str(reason)] += 1
            else:
                self._note(part, parsed)
        if self._progress:
            self._progress(what, len(indices), len(indices))
        if not len(examples):
            raise nothing_left(found.source.name, mine + splits.dropped_of(part), part)
        self.dropped.update(mine)

    def _example(self, row: RawRow, parsed: TextRow) -> PooledExample:
        target = parsed.target
        if isinstance(target, tuple):
            assert self.labels is not None, "only classification reads names"
            if parsed.words:
                return self._tagged(parsed, self.labels.ids(row.where, target))
            return PooledExample((self._joined(parsed),), self.labels.ids(row.where, target))
        if isinstance(self._task, EmbeddingTask):
            return PooledExample(tuple(self._encoder.text(text) for text in parsed.texts), (), target)
        return PooledExample((self._joined(parsed),), (), target)

    def _tagged(self, parsed: TextRow, tags: tuple[int, ...]) -> PooledExample:
        (text,) = parsed.texts
        assert isinstance(text, str), "words are of strings"
        ids, places = self._encoder.words(text, parsed.words)
        kept = [(place, tag) for place, tag in zip(places, tags, strict=True) if place is not None]
        taken = [place for place, _ in kept if place >= 0]
        self.sharing += len(taken) - len(set(taken))
        self.inexact += parsed.inexact
        return PooledExample((ids,), tuple(tag for _, tag in kept), None, tuple(place for place, _ in kept))

    def _joined(self, parsed: TextRow) -> tuple[int, ...]:
        first, *rest = parsed.texts
        if not rest:
            return self._encoder.text(first)
        assert isinstance(first, str), "pairs are of strings"
        assert isinstance(rest[0], str), "pairs are of strings"
        return self._encoder.pair(first, rest[0])

    def _note(self, part: Split, parsed: TextRow) -> None:
        if isinstance(parsed.target, tuple):
            self.counts[part].update(parsed.target)
        text, wanted = hash(parsed.texts), hash(parsed.target)
        if part == "train":
            known = self._trained.setdefault(text, wanted)
            self.ambiguous += known != wanted
        else:
            self.shared += text in self._trained


_TOO_LONG = {"drop": "left out", "cut_start": "cut at the start", "cut_end": "cut at the end"}


def _notes(config: DataConfig, splits: Splits, tokens: _RowTokenizer, dropped: Counter[str]) -> Iterator[str]:
    for one in splits.surveys:
        yield f"{one.source.name}: {counted(one.rows)} of the columns {one.reader.layout}"
    yield f"texts above {config.max_length} tokens are {_TOO_LONG[config.too_long]}"
    if dropped:
        yield f"left out {describe_dropped(dict(dropped))}"
    if tokens.labels:
        yield from _label_notes(tokens.labels, tokens.counts)
    if tokens.sharing:
        yield f"{tokens.sharing:,} words share a token with the word before, whose span they go on with"
    if tokens.inexact:
        yield f"warning: {tokens.inexact:,} spans begin or end within a word, and are taken for the whole of it"
    if splits.split.repeated:
        kept = "left out" if config.duplicates == "drop" else "kept; data.duplicates: drop leaves them out"
        yield f"repeated: {counted(splits.split.repeated)} ({kept})"
    if tokens.ambiguous:
        yield f"warning: {counted(tokens.ambiguous)} to train on want of a text what another row does not"
    if tokens.shared:
        yield f"warning: {counted(tokens.shared)} to validate on, the text of which is trained on as well"


def _label_notes(labels: LabelSet, counts: dict[str, Counter[str]]) -> Iterator[str]:
    seen = counts["train"]
    most, least = max(seen.values()), min(seen.values())
    kind = "any number of" if labels.several else "for each word one of" if labels.of_words else "one of"
    what = "words" if labels.of_words else "rows"
    yield f"{kind} {len(labels.names):,} labels; {least:,} to {most:,} {what} of a label are trained on"
    missing = [name for name in labels.names if name not in seen]
    if missing:
        yield f"warning: no {what[:-1]} to train on has the label {some_labels(missing)}"
