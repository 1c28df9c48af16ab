"""Which tokens the grammars of a step's requests allow, computed while the model computes the step.

What a request allows depends on its output so far alone, which is known before: so the masks are ready when the logits
are, and requests without a grammar do not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor

from server.engine.grammar import Mask
from server.engine.request import Request
from server.engine.vocabulary import Vocabulary


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
TOO_COMPLEX = "the grammar takes too much to follow here; make it simpler"


class Masker:
    """Computes masks on threads of its own."""

    def __init__(self) -> None:
        self._pool = LLExecutor()
        self._thread = ThreadPoolExecutor(1, "grammar-masks")

    def begin(self, rows: Sequence[Row]) -> Future[Masks] | None:
        """Start on the masks of ``rows``; None where no grammar is followed. Their grammars rest until it has ended."""
        followed = [row for row in rows if row.request.grammar is not None]
        return self._thread.submit(self._compute, followed) if followed else None

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False)

    def _compute(self, rows: Sequence[Row]) -> Masks:
        by_vocabulary: dict[Vocabulary, list[Row]] = {}
        for row in rows:
            assert row.request.grammar is not None
            by_vocabulary.setdefault(row.request.grammar.vocabulary, []).append(row)
        masks = Masks({}, {})
        for vocabulary, some in by_vocabulary.items():
            self._fill(vocabulary, some, masks)
        return masks

    def _fill(self, vocabulary: Vocabulary, rows: Sequence[Row], masks: Masks) -> None:
        count = sum(1 + len(row.draft) for row in rows)
        words = np.zeros((count, vocabulary.mask_words), dtype=np.uint32)
        plain, drafted, start = [], [], 0
        for row in rows:
            assert row.request.grammar is not None
            matcher = row.request.grammar.matcher
            if row.draft:
                drafted.append((matcher, start, list(row.draft)))
            else:
                plain.append((matcher, start))
            start += 1 + len(row.draft)
        where = words.ctypes.data, 4 * vocabulary.mask_words, count
        if plain:
            self._pool.unsafe_compute_mask_ptr(plain, *where)
        if drafted:
            self._pool.unsafe_compute_mask_ptr_with_draft_token(drafted, *where)
        start = 0
        for row in rows:
            self._finish(row, words[start : start + 1 + len(row.draft)], masks)
            start += 1 + len(row.draft)

    def _finish(self, row: Row, words: np.ndarray, masks: Masks) -> None:
        request, grammar = row.request, row.request.grammar
        assert grammar is not None
        allowed = request.sampling.allowed_token_ids
        found = [grammar.finish_mask(line, request.stop_ids, allowed) for line in words]
        if grammar.problem:
            masks.stuck[request.request_id] = TOO_COMPLEX
        elif not found[0].any():
            masks.stuck[request.request_id] = NOTHING_FITS
        masks.rows[request.request_id] = [mask if mask.any() else ~mask for mask in found]
