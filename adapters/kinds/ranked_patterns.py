"""A configuration's values by pattern, most of which are plain names: found by lookup, however many there are.

A plain name means the modules that it is, or that end with it behind a dot; its own dots stand for any character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

T = TypeVar("T")
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
_Pieces = tuple[str, ...]  # a name, cut at its dots
_Lengths = tuple[int, ...]  # of the pieces: those of one shape can be looked up together


class RankedPatterns(Generic[T]):
    """``patterns`` with their values; the first that matches a module counts."""

    def __init__(self, patterns: Mapping[str, T]) -> None:
        self._patterns = list(patterns.items())
        self._expressions: list[int] = []
        self._plain: dict[int, dict[_Lengths, dict[_Pieces, int]]] = {}
        for rank, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern) is None:
                self._expressions.append(rank)
                continue
            pieces = tuple(pattern.split("."))
            alike = self._plain.setdefault(len(pattern), {}).setdefault(tuple(map(len, pieces)), {})
            alike.setdefault(pieces, rank)

    def value(self, ends: Sequence[str], matches: Callable[[str], bool], default: T) -> T:
        """The value of the first pattern for the module whose name, and what it ends with behind dots, are ``ends``.

        ``matches`` says so for patterns that are no plain names.
        """
        plain = min((rank for end in ends for rank in self._plain_ranks(end)), default=len(self._patterns))
        for rank in self._expressions:
            if rank > plain:
                break
            if matches(self._patterns[rank][0]):
                return self._patterns[rank][1]
        return default if plain == len(self._patterns) else self._patterns[plain][1]

    def _plain_ranks(self, end: str) -> Iterator[int]:
        for lengths, alike in self._plain.get(len(end), {}).items():
            if (rank := alike.get(_cut(end, lengths))) is not None:
                yield rank


def _cut(name: str, lengths: _Lengths) -> _Pieces:
    """The pieces of ``name`` of these ``lengths``, with one character between any two."""
    starts = accumulate(lengths, lambda start, length: start + length + 1, initial=0)
    return tuple(name[start : start + length] for start, length in zip(starts, lengths, strict=False))
