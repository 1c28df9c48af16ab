"""Rows of words and tags, or of a text and the spans of its characters that are named. Knows no tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from trainer.config.data import DataConfig
from trainer.config.task import ReadingTask, TagColumns, TokenClassificationTask
from trainer.data.conversations import DroppedRow, missing_column
from trainer.data.messages import from_json, named
from trainer.data.rows import RawRow
from trainer.data.tags import OUTSIDE, as_bio, is_unspaced, place_and_kind, tag_of, words_of
from trainer.errors import DataError
from trainer.pooling.labels import label_name, unknown_label
from trainer.pooling.texts import TEXTS, TextLayout, TextReader, TextRow, find_column

_WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "labels", "pos_tags", "chunk_tags")
_SPANS = ("entities", "spans", "label", "labels", "ner")
_STARTS, _ENDS = ("start", "start_offset", "start_char", "begin"), ("end", "end_offset", "end_char", "stop")
_NAMES = ("label", "type", "entity_group", "entity", "tag", "entity_type")


def make_reader(config: DataConfig, task: ReadingTask) -> TextReader:
    """What reads the rows of ``task``."""
    return TagReader(config, task) if isinstance(task, TokenClassificationTask) else TextReader(config, task)


@dataclass
class TagReader(TextReader):
    """Reads the rows of one source. A row's target are the tags of its words, in BIO where they are of spans.

    ``labels`` counts the tags.
    """

    _joiner: str | None = None

    @override
    def read(self, row: RawRow) -> TextRow:
        if self.layout is None:
            self.layout = _layout(self.config, self._task.columns, row)
        target = self.layout.target
        assert target is not None, "rows of words have tags, texts have spans"
        for column in (*self.layout.texts, target):
            if column not in row.values:
                raise missing_column(row, column, "task.columns or data.columns")
            if row.values[column] is None:
                raise DroppedRow(f"{column!r} is null")
        found = self._of_words if self.layout.is_words else self._of_spans
        parsed = found(row, self.layout.texts[0], target)
        if not parsed.words:
            raise DroppedRow("a text without words")
        assert isinstance(parsed.target, tuple), "every word has a tag"
        self.labels.update(parsed.target)
        return parsed

    @property
    def _task(self) -> TokenClassificationTask:
        assert isinstance(self.task, TokenClassificationTask), "others have a reader of their own"
        return self.task

    def _of_words(self, row: RawRow, column: str, target: str) -> TextRow:
        words = _strings(f"{row.where}: {column!r}", row.values[column])
        values = _listed(f"{row.where}: {target!r}", row.values[target])
        if len(words) != len(values):
            raise DataError(f"{row.where}: {len(words)} words in {column!r} and {len(values)} tags in {target!r}")
        tags = as_bio([self._tag(f"{row.where}: {target!r}", value) for value in values])
        if self._joiner is None:
            self._joiner = _joiner(words) if self._task.joiner is None else self._task.joiner
        at, places = len(self.config.prompt_prefix), []
        for word in words:
            places.append((at, at + len(word)))
            at += len(word) + len(self._joiner)
        return TextRow((self.config.prompt_prefix + self._joiner.join(words),), tags, tuple(places))

    def _tag(self, where: str, value: Any) -> str:
        if isinstance(value, int) and self._task.labels is None:
            raise DataError(f"{where} are numbers: say which tags they stand for, in their order, with task.labels")
        return label_name(where, value, self._task.labels)

    def _of_spans(self, row: RawRow, column: str, target: str) -> TextRow:
        plain = row.values[column]
        text, shift = self._string(f"{row.where}: {column!r}", plain), len(self.config.prompt_prefix)
        words = tuple((start + shift, end + shift) for start, end in words_of(plain))
        tags = [OUTSIDE] * len(words)
        where, last, inexact = f"{row.where}: {target!r}", 0, 0
        for start, end, kind in sorted(_spans(where, row.values[target], plain)):
            if start < last:
                raise DataError(f"{where}: two spans overlap at character {start}; give each word one of them")
            last = end
            self._check_kind(where, kind)
            inside = [i for i, (a, z) in enumerate(words) if a < end + shift and z > start + shift]
            free = [i for i in inside if tags[i] == OUTSIDE]
            for i in free:
                tags[i] = tag_of(kind, first=i == free[0])
            edges = {words[inside[0]][0] - shift, words[inside[-1]][1] - shift} if inside else set()
            given = plain[start:end]
            exact = {start + len(given) - len(given.lstrip()), end - len(given) + len(given.rstrip())}
            inexact += edges != exact
        return TextRow((text,), tuple(tags), words, inexact)

    def _check_kind(self, where: str, kind: str) -> None:
        known = span_kinds(self._task.labels)
        if known and kind not in known:
            raise unknown_label(where, kind, known)


def span_kinds(labels: Sequence[str] | None) -> list[str]:
    """What spans may be called: ``labels``, or where these are tags what they name."""
    if not labels or OUTSIDE not in labels:
        return list(labels or ())
    kinds = [found[1] for found in map(place_and_kind, labels) if found]
    return list(dict.fromkeys(kinds))


def _layout(config: DataConfig, columns: TagColumns, row: RawRow) -> TextLayout:
    wants_spans = columns.spans or config.columns.text
    words = columns.words or next((name for name in _WORDS if name in row.values), None)
    if columns.tags or (words and not wants_spans):
        tokens = find_column(row, words, _WORDS, "task.columns.words")
        return TextLayout((tokens,), find_column(row, columns.tags, _TAGS, "task.columns.tags"), is_words=True)
    text = config.columns.text or next((name for name in TEXTS if name in row.values), None)
    if text is None:
        find_column(row, None, (*_WORDS, *TEXTS), "task.columns.words or data.columns.text")
    return TextLayout(
        (find_column(row, text, TEXTS, "data.columns.text"),),
        find_column(row, columns.spans, _SPANS, "task.columns.spans"),
    )


def _joiner(words: Sequence[str]) -> str:
    return "" if any(map(is_unspaced, "".join(words))) and max(map(len, words)) == 1 else " "


def _listed(where: str, value: Any) -> list[Any]:
    """A list, its JSON text, or words with spaces between."""
    found = from_json(where, value)
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list):
        raise DataError(f"{where} must be a list, not {named(found)}")
    return found


def _strings(where: str, value: Any) -> list[str]:
    words = _listed(where, value)
    for word in words:
        if not isinstance(word, str):
            raise DataError(f"{where} must be a list of words; it holds {named(word)}")
    return words


def _spans(where: str, value: Any, text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end (not with it) and name of each span of ``value``: objects, or lists of these three."""
    for one in _listed(where, value):
        start, end, kind = _span(where, one)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise DataError(f"{where}: a span from {start!r} to {end!r} is none of a text of {len(text)} characters")
        if not isinstance(kind, str) or not kind.strip():
            raise DataError(f"{where}: the span from {start} to {end} has no name")
        quoted = one.get("text") if isinstance(one, dict) else None
        if isinstance(quoted, str) and quoted != text[start:end]:
            raise DataError(
                f"{where}: the span from {start} to {end} is {text[start:end]!r} and not {quoted!r}; offsets count "
                "characters (Unicode code points), not bytes"
            )
        yield start, end, kind.strip()


def _span(where: str, one: Any) -> tuple[Any, Any, Any]:
    if isinstance(one, list) and len(one) == 3:
        start, end, kind = one
        return (end, kind, start) if isinstance(start, str) else (start, end, kind)
    if not isinstance(one, dict):
        raise DataError(f"{where}: a span must be an object or [start, end, label], not {named(one)}")
    found = [next((one[name] for name in names if name in one), None) for names in (_STARTS, _ENDS, _NAMES)]
    if None in found:
        raise DataError(f"{where}: a span must have start, end and label; it has {', '.join(one) or 'nothing'}")
    start, end, kind = found
    return start, end, kind
