"""Which tokens the grammars of a step's requests allow.

They are computed when the model's work is queued: a device with a queue of its own is at it meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor
from numpy.typing import NDArray

from server.engine.grammar import Mask
from server.engine.request import Request


@dataclass(frozen=True)
class Row:
    """The token to choose behind ``request``'s output and all of ``draft``; and those behind the drafted ones."""

    request: Request
    draft: Sequence[int]


@dataclass(frozen=True)
class Masks:
    """By request id, a mask for each of its rows; requests that cannot go on are ``stuck``, each with the reason."""

    rows: dict[str, list[Mask]]
    stuck: dict[str, str]

    def of(self, requests: Sequence[Request]) -> list[Mask | None]:
        """The masks of sample rows: rows of a request stand in the order of its draft."""
        left = {request_id: iter(masks) for request_id, masks in self.rows.items()}
        return [next(left[r.request_id]) if r.request_id in left else None for r in requests]


NOTHING_FITS = "no token of this model, or none that is allowed, continues the output as its grammar wants it"
MAX_SECONDS = 0.5  # of one mask, which all others wait for: it happens to a request once
TOO_COMPLEX = "the grammar takes too much to follow here; make it simpler"


class Masker:
    """Computes masks, a few hundredths of a millisecond each, on the calling thread.

    A thread beside the model's would take a core from it, and keep the interpreter's lock while it waits for one.
    """

    def __init__(self) -> None:
        self._direct = LLExecutor(num_threads=1)  # for one matcher it does the work itself

    def compute(self, rows: Sequence[Row]) -> Masks:
        """The masks of ``rows``, of those that follow a grammar."""
        masks = Masks({}, {})
        for row in rows:
            if row.request.grammar is not None:
                started = time.monotonic()
                words = self._words(row)
                slow = time.monotonic() - started > MAX_SECONDS * len(words)
                self._finish(row, words, masks, slow=slow)
        return masks

    def _words(self, row: Row) -> NDArray[np.uint32]:
        """What the matcher allows, at each place of the row. Shape: [1 + drafted, words]."""
        assert row.request.grammar is not None
        matcher, count = row.request.grammar.matcher, row.request.grammar.vocabulary.mask_words
        words = np.zeros((1 + len(row.draft), count), dtype=np.uint32)
        where = words.ctypes.data, 4 * count
        if row.draft:
            self._direct.unsafe_compute_mask_ptr_with_draft_token([(matcher, 0, list(row.draft))], *where, len(words))
        else:
            matcher.unsafe_compute_mask_ptr(*where)
        return words

    def _finish(self, row: Row, words: NDArray[np.uint32], masks: Masks, *, slow: bool) -> None:
        request, grammar = row.request, row.request.grammar
        assert grammar is not None
        allowed = request.sampling.allowed_token_ids
        found = [grammar.finish_mask(line, request.stop_ids, allowed) for line in words]
        if slow or grammar.problem:
            masks.stuck[request.request_id] = TOO_COMPLEX
        elif not found[0].any():
            masks.stuck[request.request_id] = NOTHING_FITS
        masks.rows[request.request_id] = [mask if mask.any() else ~mask for mask in found]
