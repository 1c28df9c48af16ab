"""The keys under ``task``: training an adapter that reads, to classes, tags, numbers or vectors, instead of writing.

Without this section (or with ``task: generation``) an adapter learns to write answers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from trainer.config.methods import PositiveFloat

TAG = "type"
Pooling = Literal["last", "mean"]
"""Which hidden states a text comes to: that of its last token, or the mean of all; virtual tokens never count."""


class TargetColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns hold what beside the text, whose columns are those of ``data.columns``. None: a usual name."""

    label: str | None = None
    text_pair: str | None = None


class PairColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns hold the texts to be compared. None: a usual name. ``negatives`` is one text or a list."""

    anchor: str | None = None
    positive: str | None = None
    negatives: str | None = None
    score: str | None = None


class TagColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns hold words and their tags, or beside a text its spans. None: a usual name."""

    words: str | None = None
    tags: str | None = None
    spans: str | None = None


class GenerationTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="generation", tag_field=TAG):
    """Writing answers: the same as no ``task``."""

    KIND: ClassVar[str] = "generation"


class ClassificationTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="classification", tag_field=TAG
):
    """One class of a text or a pair of texts, or with ``multi_label`` any number of them.

    ``labels`` are the classes in the order of their ids; None: those of the data. ``multi_label`` None: where labels
    are lists. ``class_weights`` balanced weighs rows so that every class counts the same, however rare it is.
    """

    labels: list[str] | None = None
    multi_label: bool | None = None
    class_weights: Literal["none", "balanced"] = "none"
    columns: TargetColumns = TargetColumns()

    KIND: ClassVar[str] = "classification"
    PEFT_TASK: ClassVar[str] = "SEQ_CLS"


class TokenClassificationTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="token-classification", tag_field=TAG
):
    """A tag of every word: names in a text, parts of speech. Of the pieces of a word the first one is read.

    Rows are words and tags, or a text and spans of its characters. ``labels`` are the tags in the order of their ids,
    or of spans their names; None: those of the data. Spans are learned as BIO, whatever scheme the data has.
    ``joiner`` stands between words; None: a space, or nothing where they are characters of a script without spaces.
    """

    labels: list[str] | None = None
    joiner: str | None = None
    class_weights: Literal["none", "balanced"] = "none"
    columns: TagColumns = TagColumns()

    KIND: ClassVar[str] = "token-classification"
    PEFT_TASK: ClassVar[str] = "TOKEN_CLS"
    pooling: ClassVar[Literal["all"]] = "all"


class RegressionTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="regression", tag_field=TAG
):
    """A number for a text or a pair of texts, by the mean squared error."""

    columns: TargetColumns = TargetColumns()

    KIND: ClassVar[str] = "regression"
    PEFT_TASK: ClassVar[str] = "SEQ_CLS"


class EmbeddingTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="embedding", tag_field=TAG
):
    """Vectors of texts, alike where the texts belong together.

    Rows of an anchor and a positive, with or without negatives, learn by in-batch negatives (InfoNCE): the cosine of
    every anchor and its positive, over ``temperature``, against those of all other positives and negatives of the
    batch. Rows of two texts and a score (from -1 to 1) learn the cosine by its squared error.
    """

    pooling: Pooling = "mean"
    temperature: PositiveFloat = 0.05
    columns: PairColumns = PairColumns()

    KIND: ClassVar[str] = "embedding"
    PEFT_TASK: ClassVar[str] = "FEATURE_EXTRACTION"


ReadingTask = ClassificationTask | TokenClassificationTask | RegressionTask | EmbeddingTask
Task = GenerationTask | ReadingTask
_ALL = (GenerationTask, ClassificationTask, TokenClassificationTask, RegressionTask, EmbeddingTask)
TASKS: dict[str, type[Task]] = {kind.KIND: kind for kind in _ALL}
