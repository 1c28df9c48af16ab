"""Guesses how a sequence goes on: as it did after its last tokens when they stood there before.

Prompt lookup decoding (Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding). Knows tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (2, 3)  # tokens that must agree for a guess, the longest tried first; one more each
# Of a token id in the number that stands for an n-gram: numbers are smaller than tuples, and ids below 2**21.
_BITS = 21
_MASKS = tuple((1 << _BITS * n) - 1 for n in _SIZES)
# How likely a guess is right, before any is known, after 2, 3, ... tokens that agreed; the last of all longer runs.
_CHANCES = (0.2, 0.4, 0.6, 0.7, 0.8)
_MEMORY = 0.85  # what a chance keeps of itself at a new token


class PromptLookup:
    """The n-grams of a sequence, and how often guesses from them were right.

    ``token_ids`` may grow at its end, and must not change otherwise; its first ``start`` are passed over. Reading a
    token and guessing one take the same time however long the sequence is.
    """

    def __init__(self, token_ids: Sequence[int], start: int = 0) -> None:
        self._tokens = token_ids
        self._start, self._read = start, len(token_ids)
        known = token_ids[start:]
        self._last = 0  # the last tokens as a number
        for token in known[-_SIZES[-1] :]:
            self._last = self._last << _BITS | token
        self._behind = _places(known, start)
        self._source: int | None = None  # the place of the token that is guessed to come next
        self._agreed = 0  # tokens before it that are as the last ones
        self._chances = list(_CHANCES)
        self._find()

    def read(self) -> None:
        """Take in the tokens that are new, and learn from what was guessed of them."""
        for token in self._tokens[self._read :]:
            self._compare(token)
            self._push(token)
            if self._source is None:
                self._find()

    def chances(self, count: int) -> list[float]:
        """How likely the first, the first two, ... of at most ``count`` guessed tokens are all right."""
        if self._source is None:
            return []
        chance, chances = 1.0, []
        for agreed in range(self._agreed, self._agreed + count):
            chance *= self._chances[_class(agreed)]
            chances.append(chance)
        return chances

    def guess(self, count: int) -> list[int]:
        """The ``count`` tokens to come; what would be copied from beyond the end repeats. None without a source."""
        if self._source is None:
            return []
        period = self._read - self._source
        return [self._tokens[self._source + i % period] for i in range(count)]

    def _compare(self, token: int) -> None:
        if self._source is None:
            return
        is_right, which = self._tokens[self._source] == token, _class(self._agreed)
        self._chances[which] = _MEMORY * self._chances[which] + (1 - _MEMORY) * is_right
        self._source, self._agreed = (self._source + 1, self._agreed + 1) if is_right else (None, 0)

    def _push(self, token: int) -> None:
        for n, mask, behind in zip(_SIZES, _MASKS, self._behind, strict=True):
            if self._read - self._start >= n:
                behind[self._last & mask] = self._read
        self._last = (self._last << _BITS | token) & _MASKS[-1]
        self._read += 1

    def _find(self) -> None:
        for n, mask, behind in zip(reversed(_SIZES), reversed(_MASKS), reversed(self._behind), strict=True):
            if self._read - self._start > n and (place := behind.get(self._last & mask)) is not None:
                self._source, self._agreed = place, n
                return


def _places(tokens: Sequence[int], start: int) -> list[dict[int, int]]:
    """By size: n-gram to the place behind its last occurrence, if something stands there; places are from ``start``."""
    found, keys = [], list(tokens)
    for n in _SIZES:
        keys = [key << _BITS | token for key, token in zip(keys, tokens[n - 1 :], strict=False)]
        found.append(dict(zip(keys, range(start + n, start + len(tokens)), strict=False)))
    return found


def _class(agreed: int) -> int:
    return min(agreed - _SIZES[0], len(_CHANCES) - 1)
