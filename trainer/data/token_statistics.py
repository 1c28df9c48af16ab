"""Tokens counted: lengths summed up, what a limit on them costs, and how well a tokenizer knows a text.

Knows numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.data.batches import LengthBucketSampler, Packing
from trainer.tables import aligned

_BARS = 10
_STEP = 64  # limits are suggested in multiples of it
_SHARES = (0.95, 0.99, 1.0)
_COMMON_LOSS = 0.01  # a suggested limit loses at most so many rows
_SAMPLED = 20_000  # rows over which padding is worked out
Counts = npt.NDArray[np.int64]


class Bar(msgspec.Struct, frozen=True):
    """``count`` rows of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    count: int


class Lengths(msgspec.Struct, frozen=True):
    """Tokens a row. ``p95`` is the length that 95 % of the rows do not exceed."""

    min: int
    median: int
    mean: float
    p95: int
    p99: int
    max: int
    histogram: list[Bar]


class LengthLimit(msgspec.Struct, frozen=True):
    """What becomes of the rows under a ``max_length``.

    ``padding`` is the share of all computed tokens that is padding in batches of rows alike in length, as training
    makes them; ``padding_shuffled`` in batches of any rows; ``padding_packed`` in packed rows.
    """

    max_length: int
    rows_longer: int
    padding: float
    padding_shuffled: float
    padding_packed: float


def lengths_table(title: str, lengths: Mapping[str, Lengths]) -> str:
    """``lengths`` by what they are of, under a header that begins with ``title``, for a terminal."""
    rows = [
        (name, f"{one.min:,}", f"{one.median:,}", f"{one.mean:,.1f}", f"{one.p95:,}", f"{one.max:,}")
        for name, one in lengths.items()
    ]
    return aligned((title, "min", "median", "mean", "p95", "max"), rows)


def summarize(lengths: Counts) -> Lengths:
    """``lengths`` [rows], at least one, in a few numbers."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _BARS))
    bins = np.bincount((lengths - low) // width)
    bars = [Bar(low + i * width, min(high, low + (i + 1) * width - 1), int(count)) for i, count in enumerate(bins)]
    median, p95, p99 = (int(np.quantile(lengths, share, method="inverted_cdf")) for share in (0.5, 0.95, 0.99))
    return Lengths(low, median, round(float(lengths.mean()), 1), p95, p99, high, bars)


def length_limits(lengths: Counts, batch_size: int) -> list[LengthLimit]:
    """What it costs to keep 95 %, 99 % and all of the rows."""
    tried = sorted({_rounded(int(np.quantile(lengths, share, method="inverted_cdf"))) for share in _SHARES})
    return [limit_of(lengths, max_length, batch_size) for max_length in tried]


def suggested_limit(found: Sequence[LengthLimit], rows: int) -> int:
    """The limit among ``found`` that keeps all rows, or where that is more than twice as long, 99 % of them."""
    longest = found[-1].max_length
    enough = next(limit.max_length for limit in found if limit.rows_longer <= _COMMON_LOSS * rows)
    return longest if longest <= 2 * enough else enough


def limit_of(lengths: Counts, max_length: int, batch_size: int) -> LengthLimit:
    """What becomes of rows of ``lengths`` under ``max_length``, at least one of which must fit."""
    kept = lengths[lengths <= max_length]
    sample = kept[:_SAMPLED].tolist()
    order = list(LengthBucketSampler(sample, batch_size, seed=0))
    return LengthLimit(
        max_length=max_length,
        rows_longer=len(lengths) - len(kept),
        padding=_padding([sample[i] for i in order], batch_size),
        padding_shuffled=_padding(np.random.default_rng(0).permutation(sample).tolist(), batch_size),
        padding_packed=round(1 - sum(sample) / (len(Packing(sample, max_length)) * max_length), 4),
    )


def _padding(lengths: Sequence[int], batch_size: int) -> float:
    batches = [lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size)]
    return round(1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches), 4)


def _rounded(length: int) -> int:
    return -(-length // _STEP) * _STEP


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class VocabularyUse(msgspec.Struct, frozen=True):
    """Of ``tokens`` tokens, the share that is ``unknown`` to the tokenizer, and that stands for a part of a character.

    ``different`` of the ``size`` tokens of the vocabulary occur.
    """

    tokens: int
    different: int
    size: int
    unknown: float
    byte_pieces: float


def vocabulary_use(counts: Mapping[int, int], tokenizer: Any) -> VocabularyUse:
    """The use of ``tokenizer``'s vocabulary by a text whose tokens occur as often as ``counts`` says."""
    total = sum(counts.values())
    pieces = sum(count for token, count in counts.items() if _is_byte_piece(token, tokenizer))
    unknown = counts.get(tokenizer.unk_token_id, 0) if tokenizer.unk_token_id is not None else 0
    share = 1 / max(1, total)
    return VocabularyUse(total, len(counts), len(tokenizer), round(unknown * share, 4), round(pieces * share, 4))


def _is_byte_piece(token: int, tokenizer: Any) -> bool:
    text = tokenizer.convert_ids_to_tokens(token)
    return bool(_BYTE.fullmatch(text)) or _INCOMPLETE in tokenizer.decode([token])
