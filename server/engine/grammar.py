"""The grammar that one output follows: which tokens may come next, and when it is over."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from server.engine.vocabulary import Vocabulary

Mask = NDArray[np.uint8]
"""Tokens that may come next, a bit each, the lowest bit of a byte first."""


class OutputGrammar:
    """How far an output has come in its grammar.

    Once all the grammar wants is there, ``is_complete``: nothing may follow. Its matcher is the stepping thread's.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self.matcher.is_stopped()

    @property
    def problem(self) -> str:
        """Why nothing can be said of what may follow, where that is so: a limit was reached."""
        return self.matcher.get_error() if self.matcher.is_error() else ""

    def fitting(self, draft: Sequence[int]) -> int:
        """How many of the drafted tokens may come next, one after the other."""
        return self.matcher.validate_tokens(list(draft))

    def fits(self, token: int, draft: Sequence[int]) -> bool:
        """Whether ``token`` may come behind ``draft``, as a part of what the grammar wants: it must have a text."""
        return token < self.vocabulary.end and self.fitting([*draft, token]) == len(draft) + 1

    def take(self, token: int) -> bool:
        """Go on behind ``token``; False, and nothing has changed, where it may not come next."""
        return self.matcher.try_consume_tokens([token]) == 1

    def finish_mask(self, words: NDArray[np.uint32], stop_ids: Collection[int], allowed: Collection[int]) -> Mask:
        """A matcher's mask as one of the request: ``stop_ids`` end it; of ``allowed`` unless that is empty.

        Without a token in it where nothing fits.
        """
        mask = words.view(np.uint8).copy()
        end = self.vocabulary.end
        may_end = bool(mask[end // 8] >> (end % 8) & 1)
        mask[end // 8] &= ~(1 << end % 8) & 0xFF
        if may_end:
            mask |= _bits(stop_ids, mask)
        return mask & _bits(allowed, mask) if allowed else mask


def _bits(tokens: Collection[int], like: Mask) -> Mask:
    bits = np.zeros_like(like)
    for token in tokens:
        if token < 8 * len(bits):
            bits[token // 8] |= 1 << token % 8
    return bits
