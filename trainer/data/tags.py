"""Tags of words, and the words of a text: which scheme writes how a name of several words is tagged.

BIO (IOB2) and what says the same: IOB1, BIOES, BMES, BILOU. Other tags stand for themselves. Knows no rows and no ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_TAG = re.compile(r"([BIESMLU])(?:-(.+))?")  # of a span; without a name where all are of one kind
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")


class Span(NamedTuple):
    """Words ``start`` to ``end`` (not with it), and what they are."""

    kind: str
    start: int
    end: int


def place_and_kind(tag: str) -> tuple[str, str] | None:
    """Where in a span the word stands, and what the span is; None for tags that are of no span."""
    found = _TAG.fullmatch(tag)
    return (found[1], found[2] or "") if found else None


def spans_of(tags: Iterable[str]) -> Iterator[Span]:
    """The spans of ``tags``, as conlleval and seqeval find them: one that is gone on with, unbegun, begins there."""
    kind, start, at = None, 0, 0
    for at, tag in enumerate(tags):
        place, named = place_and_kind(tag) or ("", None)
        if kind is not None and (place in _BEGINS or named != kind):
            yield Span(kind, start, at)
            kind = None
        if kind is None and named is not None:
            kind, start = named, at
        if kind is not None and place in _ENDS:
            yield Span(kind, start, at + 1)
            kind = None
    if kind is not None:
        yield Span(kind, start, at + 1)


def tag_of(kind: str, *, first: bool) -> str:
    """How BIO tags a word of a span."""
    return ("B" if first else "I") + (f"-{kind}" if kind else "")


def as_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """``tags`` with the same spans in BIO; tags of no span stay."""
    out = list(tags)
    for span in spans_of(tags):
        for word in range(span.start, span.end):
            out[word] = tag_of(span.kind, first=word == span.start)
    return tuple(out)


def label_in_bio(tag: str) -> str:
    """What ``tag``, by itself, is in BIO."""
    found = place_and_kind(tag)
    return tag if found is None else tag_of(found[1], first=found[0] in _BEGINS)


def order_of(tag: str) -> tuple[bool, str, str]:
    """By which tags are sorted: those outside first, then by kind, B before I."""
    place, kind = place_and_kind(tag) or ("", tag)
    return tag != OUTSIDE, kind, place


def read_tags(found: Iterable[str | None]) -> list[str]:
    """Tags of words: what the model says of their first pieces, None where a word shares the piece of the one before.

    Such a word goes on with its span.
    """
    said: list[str] = []
    for tag in found:
        if tag is not None:
            said.append(tag)
            continue
        before = place_and_kind(said[-1]) if said else None
        said.append(tag_of(before[1], first=False) if before else said[-1] if said else OUTSIDE)
    return said


def words_of(text: str) -> Iterator[tuple[int, int]]:
    """Where the words of ``text`` begin and end, as BERT splits them: at spaces, each sign and punctuation mark alone.

    So is each character of a script without spaces (Han, kana, Thai, Lao, Burmese, Khmer).
    """
    start = -1
    for at, char in enumerate(text):
        goes_on = unicodedata.category(char)[0] in "LMN" and not is_unspaced(char)
        if start >= 0 and not goes_on:
            yield start, at
            start = -1
        if goes_on and start < 0:
            start = at
        elif not goes_on and not char.isspace() and unicodedata.category(char)[0] != "C":
            yield at, at + 1
    if start >= 0:
        yield start, len(text)


_UNSPACED = (
    ("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"), ("\u3040", "\u30ff"), ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002fa1f"),
)  # fmt: skip


def is_unspaced(char: str) -> bool:
    """Whether ``char`` is of a script that writes no spaces between words."""
    return char >= _UNSPACED[0][0] and any(low <= char <= high for low, high in _UNSPACED)
