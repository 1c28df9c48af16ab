"""Draws random tokens from filtered distributions without sorting the vocabulary.

Probabilities stay unnormalised: a token's weight is exp((logit − largest logit) / temperature), at most 1. Filters
come down to the smallest weight that is kept, and all tokens of at least that weight are kept, so equal logits are
treated alike and the outcome of a row depends on nothing but the row. The kept weights are summed up in vocabulary
order until the row's uniform number is reached, which is a pure function of its request's seed and number of outputs:
no other request, no preemption and no restart can change what a row draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64


def as_blocks(values: Tensor, fill: float) -> Tensor:
    """``values`` [n, m] as [n, blocks, BLOCK]; a last block that is not full is filled up."""
    missing = -values.shape[1] % BLOCK
    padded = F.pad(values, (0, missing), value=fill) if missing else values
    return padded.view(len(values), -1, BLOCK)


def largest(blocks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` largest values of each row of ``blocks`` [n, blocks, BLOCK], descending, and their places.

    Both [n, width], or [n, all] if there are fewer. They lie in the ``width`` blocks with the largest maxima: looking
    only there is what makes it fast. Which of several equal values at the end are found is unspecified, but depends on
    the row and ``width`` only.
    """
    if width >= blocks.shape[1]:
        values, places = blocks.flatten(1).topk(min(width, blocks.shape[1] * BLOCK))
        return values, places
    chosen = blocks.amax(dim=-1).topk(width).indices
    values, inside = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(width)
    return values, chosen.gather(1, inside // BLOCK) * BLOCK + inside % BLOCK


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per row, a multiple of 2**-52: element ``counters[i]`` of the stream ``seeds[i]``."""
    streams = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    steps = np.array(counters, dtype=np.uint64) + np.uint64(1)
    bits: NDArray[np.uint64] = _mix(streams + steps * _GOLDEN) >> np.uint64(12)
    return bits.astype(np.float64) * 2.0**-52


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


WIDTHS = (64, 256, 1024)  # how many of the largest weights are looked at, before all of them are


@dataclass(frozen=True)
class Filters:
    """Per row [n]: ``top_k`` (int64, 0 keeps all), ``top_p`` (float64, 1 keeps all), ``min_p`` (0 keeps all).

    They apply in the order min_p, top_k, top_p; top_p is a share of what the others kept.
    """

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def __getitem__(self, rows: Tensor) -> Filters:
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])

    @property
    def active(self) -> Tensor:
        """Rows [n] that filter anything."""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)


def draw(logits: Tensor, best: Tensor, temperature: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    """One token per row [n] of ``logits`` [n, vocab], by ``uniform`` [n] in [0, 1), float64.

    ``best`` [n] are the largest logits; ``temperature`` [n] is above 0.
    """
    weights = as_blocks((logits - best[:, None]).div_(temperature[:, None]).exp_(), 0.0)
    active = filters.active
    if not bool(active.any()):
        return _draw_unfiltered(weights, uniform)
    tokens = torch.empty_like(filters.top_k)
    rest, rows = (~active).nonzero()[:, 0], active.nonzero()[:, 0]
    if len(rest):
        tokens[rest] = _draw_unfiltered(weights[rest], uniform[rest])
    for width in (*WIDTHS, weights.shape[1] * BLOCK):
        remaining = weights if len(rows) == len(weights) else weights[rows]
        values, indices = largest(remaining, width)
        floor, known = _floor(values, remaining, filters[rows])
        drawn = _draw_from(values.masked_fill(values < floor, 0.0), indices, uniform[rows])
        tokens[rows[known]] = drawn[known]
        rows = rows[~known]
        if not len(rows):
            break
    return tokens


def _draw_unfiltered(weights: Tensor, uniform: Tensor) -> Tensor:
    """First find the block that the point falls into, then the place in it."""
    sums = weights.sum(dim=-1)
    ends = sums.cumsum(dim=-1, dtype=torch.float64)
    point = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, point, right=True)
    size = sums.gather(1, block).double()
    share = ((point - ends.gather(1, block) + size) / size).clamp(0.0, 1 - 2.0**-52)  # rounding must not lead outside
    inside = weights[torch.arange(len(weights), device=weights.device), block[:, 0]]
    return block[:, 0] * BLOCK + _invert(inside, share)


def _floor(values: Tensor, weights: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """The smallest kept weight [n, 1], and whether it is known [n]: all kept weights are among ``values``."""
    everything = values.shape[1] == weights.shape[1] * BLOCK
    places = filters.top_k[:, None].clamp(1, values.shape[1]) - 1
    by_top_k = values.gather(1, places).masked_fill(filters.top_k[:, None] == 0, 0.0)
    floor = torch.maximum(by_top_k, filters.min_p[:, None])
    kept = values.masked_fill(values < floor, 0.0).cumsum(dim=-1, dtype=torch.float64)
    unfiltered = weights.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)[:, -1:]
    share = filters.top_p[:, None] * torch.where(floor > 0, kept[:, -1:], unfiltered)
    count = (kept - values < share).sum(dim=-1, keepdim=True).clamp(1, values.shape[1])
    by_top_p = values.gather(1, count - 1).masked_fill(filters.top_p[:, None] >= 1, 0.0)
    last = values[:, -1]
    known = (floor[:, 0] > last) | ((floor[:, 0] == 0) & (by_top_p[:, 0] > last))
    return torch.maximum(floor, by_top_p), known | everything


def _draw_from(values: Tensor, tokens: Tensor, uniform: Tensor) -> Tensor:
    """Draw among ``tokens`` [n, width] with weights ``values``, in vocabulary order."""
    tokens, order = tokens.sort(dim=-1)
    return tokens.gather(1, _invert(values.gather(1, order), uniform[:, None])[:, None])[:, 0]


def _invert(weights: Tensor, share: Tensor) -> Tensor:
    """The place [n] at which the running sum of ``weights`` [n, m] exceeds ``share`` [n, 1] (below 1) of its total."""
    ends = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(ends, share * ends[:, -1:], right=True)[:, 0]
