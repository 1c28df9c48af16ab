"""Entities of the classes of tokens, put together as transformers' TokenClassificationPipeline does.

A word has one label in all strategies but ``simple``: that of its ``first`` token, of the one that is surest
(``max``), or the likeliest by the mean of all its tokens (``average``). Neighbours of one label then are one entity; B-
begins another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.text.word_pieces import WordPiece

Strategy = Literal["simple", "first", "average", "max"]
Shares = NDArray[np.float32]
Join = Callable[[Sequence[str]], str]  # the text of spelt tokens


class _Labelled(NamedTuple):
    """Tokens or a word with a label, its share, its text and its characters."""

    label: str
    share: Any
    text: str
    start: int
    end: int


def find_entities(
    pieces: Sequence[WordPiece],
    shares: Shares,
    strategy: Strategy,
    *,
    label: Callable[[int], str],
    join: Join,
    ignored: Collection[str],
) -> Iterator[dict[str, Any]]:
    """The entities of a text, but those of a name among ``ignored``.

    Shape: ``shares`` [tokens, labels], probabilities of each of ``pieces``.
    """
    kept = [(piece, row) for piece, row in zip(pieces, shares, strict=True) if not piece.is_added]
    words = _words(kept) if strategy != "simple" else ([one] for one in kept)
    labelled = [_labelled(word, strategy, label, join) for word in words]
    for group in _groups(labelled):
        name = _kind(group[0].label)
        if name not in ignored:
            yield {
                "entity_group": name,
                "score": float(np.mean([one.share for one in group])),
                "word": join([one.text for one in group]),
                "start": group[0].start,
                "end": group[-1].end,
            }


_Token = tuple[WordPiece, Shares]


def _words(tokens: Iterable[_Token]) -> Iterator[list[_Token]]:
    word: list[_Token] = []
    for token in tokens:
        if word and not token[0].continues:
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _labelled(word: Sequence[_Token], strategy: Strategy, label: Callable[[int], str], join: Join) -> _Labelled:
    if strategy == "average":
        row = np.mean([row for _, row in word], axis=0)
    elif strategy == "max":
        row = max((row for _, row in word), key=np.max)
    else:
        row = word[0][1]
    number = int(row.argmax())
    spelt = [piece.spelling for piece, _ in word]
    text = spelt[0] if strategy == "simple" else join(spelt)  # else it is joined once more, as there
    return _Labelled(label(number), row[number], text, word[0][0].start, word[-1][0].end)


def _groups(labelled: Iterable[_Labelled]) -> Iterator[list[_Labelled]]:
    group: list[_Labelled] = []
    for one in labelled:
        begins = one.label.startswith("B-") or (bool(group) and _tag(one.label) != _tag(group[-1].label))
        if group and begins:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _tag(label: str) -> str:
    """What a label is of, where it begins or goes on something."""
    return label[2:] if label.startswith(("B-", "I-")) else label


def _kind(label: str) -> str:
    """The name of an entity; transformers cuts it at any first dash."""
    return label.split("-", 1)[-1]
