"""The classes of a run: their names, and the ids that stand for them."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.task import ClassificationTask, TokenClassificationTask
from trainer.data.messages import named
from trainer.data.tags import OUTSIDE, label_in_bio, order_of, place_and_kind, tag_of
from trainer.errors import DataError

_MOST = 10_000  # a head of more would be larger than most adapters; mostly they are numbers, or texts
_WHOLE = re.compile(r"-?\d+")
_SHOWN = 8


def label_name(where: str, value: Any, labels: Sequence[str] | None) -> str:
    """The name of the label ``value``, which may be the id of one of ``labels``. Raises DataError."""
    if isinstance(value, bool):
        name = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        name = str(int(value))
    elif isinstance(value, (str, int)):
        name = str(value).strip()
    elif isinstance(value, float):
        raise DataError(f"{where} is {value}, which is no label; numbers are learned by task: regression")
    else:
        raise DataError(f"{where} must be a label, not {named(value)}")
    if not name:
        raise DataError(f"{where} is an empty label")
    if labels is None or name in labels:
        return name
    if _WHOLE.fullmatch(name) and 0 <= int(name) < len(labels):
        return labels[int(name)]
    raise unknown_label(where, name, labels)


def unknown_label(where: str, name: str, labels: Sequence[str]) -> DataError:
    """``name`` is none of ``labels``."""
    near = difflib.get_close_matches(name, labels, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {some_labels(labels)}"
    return DataError(f"{where}: unknown label {name!r}; {hint}")


def some_labels(labels: Sequence[str]) -> str:
    """The first of ``labels``, in words."""
    more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(map(repr, labels[:_SHOWN])) + more


class LabelSet:
    """``names`` by id; with ``several`` a text has any number of them, ``of_words`` each word has one."""

    def __init__(self, names: Sequence[str], *, several: bool = False, of_words: bool = False) -> None:
        self.names, self.several, self.of_words = tuple(names), several, of_words
        self._ids = {name: i for i, name in enumerate(self.names)}

    @property
    def of_spans(self) -> bool:
        """Whether tags of words are those of spans."""
        return self.of_words and any(map(place_and_kind, self.names))

    @property
    def teaches(self) -> str:
        """What rows with these labels teach."""
        if not self.of_words:
            return "classification"
        return "token-classification" if self.of_spans else "tagging"

    def ids(self, where: str, names: Sequence[str]) -> tuple[int, ...]:
        """The ids of ``names``. Raises DataError for one that is not known."""
        for name in names:
            if name not in self._ids:
                raise unknown_label(where, name, self.names)
        return tuple(self._ids[name] for name in names)


def label_set(task: ClassificationTask, found: Mapping[str, int], recipe: Sequence[str], *, several: bool) -> LabelSet:
    """The classes of a run, by the configuration, by what a recipe says of its set, or those ``found`` in the rows.

    Raises DataError where there is nothing to tell apart.
    """
    names = list(task.labels or recipe or _sorted(found))
    _check_names(names)
    if len(found) == 1 and not several:
        raise DataError(
            f"all rows have the one label {next(iter(found))!r}: there is nothing to tell apart; give rows of other "
            "classes, or name another column in task.columns.label"
        )
    return LabelSet(names, several=several)


def tag_set(task: TokenClassificationTask, found: Mapping[str, int], *, of_spans: bool) -> LabelSet:
    """The tags of a run, as ``label_set``; ``of_spans``: task.labels may name what spans are, instead of tags."""
    given = task.labels
    if given and of_spans and OUTSIDE not in given:
        given = [OUTSIDE, *(tag_of(kind, first=first) for kind in given for first in (True, False))]
    names = list(dict.fromkeys(map(label_in_bio, given))) if given else sorted(found, key=order_of)
    _check_names(names)
    if len(found) == 1:
        raise DataError(
            f"all words have the one tag {next(iter(found))!r}: there is nothing to tell apart; give rows with others, "
            "or name another column in task.columns"
        )
    return LabelSet(names, of_words=True)


def _check_names(names: Sequence[str]) -> None:
    if len(names) > _MOST:
        raise DataError(
            f"{len(names):,} labels, of at most {_MOST:,}: is the label's column a number (task: regression) or a text?"
        )
    if len(set(names)) < len(names):
        raise DataError(f"task.labels names {Counter(names).most_common(1)[0][0]!r} twice")


def _sorted(found: Mapping[str, int]) -> list[str]:
    if all(_WHOLE.fullmatch(name) for name in found):
        return sorted(found, key=int)
    return sorted(found)
