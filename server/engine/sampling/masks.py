"""Chooses tokens that the grammars of a step's requests allow.

Most tokens that a model chooses by itself are such, and to look at one takes a thousandth of what it takes to look at
all. So a token is chosen first, and only where it is not allowed is it known which ones are, and chosen among these.
That is no other choice: the likeliest token, if allowed, is the likeliest allowed one; and with p(A) the probability
of what is allowed, a token t of it is drawn with p(t) + (1 - p(A)) * p(t) / p(A) = p(t) / p(A).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor
from numpy.typing import NDArray
from torch import Tensor

from server.engine.grammar import Mask
from server.engine.request import Request
from server.engine.sampling.sampler import Sampler, SamplerOutput


@dataclass(frozen=True)
class Row:
    """The token to choose behind ``request``'s output and all of ``draft``; and those behind the drafted ones."""

    request: Request
    draft: tuple[int, ...]


@dataclass(frozen=True)
class Masks:
    """By request id, a mask for each of its rows; requests that cannot go on are ``stuck``, each with the reason."""

    rows: dict[str, list[Mask]]
    stuck: dict[str, str]

    def of(self, places: Sequence[Place]) -> list[Mask | None]:
        """The masks of sample rows."""
        found = ((self.rows.get(row.request.request_id), i) for row, i in places)
        return [None if masks is None else masks[i] for masks, i in found]


Place = tuple[Row, int]
"""A row of logits: behind so many tokens of the draft."""
NOTHING_FITS = "no token of this model, or none that is allowed, continues the output as its grammar wants it"
MAX_SECONDS = 0.5  # of one mask, which all others wait for: it happens to a request once
TOO_COMPLEX = "the grammar takes too much to follow here; make it simpler"


class GrammarSampler:
    """A sampler whose tokens follow the grammars of those requests that have one."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._masker = _Masker()

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> tuple[SamplerOutput, dict[str, str]]:
        """A token for each place of ``rows``, whose logits are the rows of ``logits`` [n, vocab]; and who is stuck.

        By request id, with the reason. Raises NonFiniteLogitsError.
        """
        places = [(row, i) for row in rows for i in range(1 + len(row.draft))]
        masks = self._masker.compute([row for row in rows if row.request.grammar is not None and not _may_try(row)])
        sampled = self._sampler.sample(logits, *_columns(places), masks.of(places) if masks.rows else ())
        refused = [n for n, place in enumerate(places) if _is_refused(place, sampled.token_ids[n])]
        if not refused:
            return sampled, masks.stuck
        some = [places[n] for n in refused]
        masks_of_these = self._masker.compute(list({row.request.request_id: row for row, _ in some}.values()))
        again = self._sampler.sample(logits[refused], *_columns(some), masks_of_these.of(some), again=True)
        for n, token, logprobs in zip(refused, again.token_ids, again.logprobs, strict=True):
            sampled.token_ids[n], sampled.logprobs[n] = token, logprobs
        return sampled, masks.stuck | masks_of_these.stuck


def _columns(places: Sequence[Place]) -> tuple[list[Request], list[int]]:
    return [row.request for row, _ in places], [i for _, i in places]


def _may_try(row: Row) -> bool:
    """Whether a token may be chosen before it is known what is allowed.

    Not where filters look at probabilities, which are others then, or where tokens that are listed are the only ones.
    """
    params = row.request.sampling
    if params.allowed_token_ids:
        return False
    is_greedy = params.temperature == 0 or params.top_k == 1
    return is_greedy or (params.top_k == 0 and params.top_p == 1 and params.min_p == 0)


def _is_refused(place: Place, token: int) -> bool:
    row, i = place
    grammar = row.request.grammar
    if grammar is None or not _may_try(row):
        return False
    return token in row.request.stop_ids or not grammar.fits(token, row.draft[:i])


class _Masker:
    """Computes masks, a few hundredths of a millisecond each, on the calling thread.

    A thread beside the model's would take a core from it, and keep the interpreter's lock while it waits for one.
    """

    def __init__(self) -> None:
        self._direct = LLExecutor(num_threads=1)  # for one matcher it does the work itself

    def compute(self, rows: Sequence[Row]) -> Masks:
        """The masks of ``rows``, which follow grammars."""
        masks = Masks({}, {})
        for row in rows:
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
