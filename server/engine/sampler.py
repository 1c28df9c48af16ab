"""Chooses the next token of every row of a batch.

A row's result depends on its own logits, parameters and history only, never on the rows beside it: filters are
thresholds on the row's own probabilities, and random numbers are a function of seed and position (``rng``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.logits_processors import needs_processing, process_logits
from server.engine.logprobs import token_logprobs
from server.engine.messages import TokenLogprobs
from server.engine.request import Request
from server.engine.rng import uniforms

# How many of the largest probabilities are sorted to find where top_p cuts; the last resort is all of them.
TOP_P_WIDTHS = (64, 1024)


class NonFiniteLogitsError(Exception):
    """The model computed NaN or infinity."""


@dataclass(frozen=True)
class SamplerOutput:
    """One entry per row; ``logprobs`` None where the request wants none."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


class Sampler:
    """Greedy and random choice, in torch over all rows at once."""

    @torch.inference_mode()
    def sample(self, logits: Tensor, requests: Sequence[Request]) -> SamplerOutput:
        """The next token of each of ``requests``, whose logits are the rows of ``logits`` [n, vocab] fp32.

        Raises NonFiniteLogitsError when a row has NaN or +infinity, or nothing but -infinity.
        """
        best, tokens = logits.max(dim=-1)
        if not bool(torch.isfinite(best).all()):
            raise NonFiniteLogitsError("logits are not finite")
        processed = logits
        if any(map(needs_processing, requests)):
            processed = process_logits(logits, requests)
            tokens = processed.argmax(dim=-1)
        rows = [i for i, r in enumerate(requests) if r.sampling.temperature > 0 and r.sampling.top_k != 1]
        if rows:
            chosen = [requests[i] for i in rows]
            everything = len(rows) == len(requests)
            drawn = draw(processed if everything else processed[rows], chosen)
            tokens = drawn if everything else tokens.index_copy(0, torch.tensor(rows, device=tokens.device), drawn)
        token_ids: list[int] = tokens.tolist()
        return SamplerOutput(token_ids, _sample_logprobs(logits, token_ids, requests))


def draw(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """One random token per row [n], by inverting the cumulative distribution in vocabulary order."""
    params = [r.sampling for r in requests]
    uniform = torch.from_numpy(uniforms([p.seed for p in params], [r.num_output_tokens for r in requests]))
    logits = logits / logits.new_tensor([max(p.temperature, 1e-5) for p in params])[:, None]
    vocab_size = logits.shape[1]
    logits = _min_p(logits, [p.min_p for p in params])
    logits = _top_k(logits, [min(p.top_k, vocab_size) or vocab_size for p in params])
    probs = _top_p(torch.softmax(logits, dim=-1), [p.top_p for p in params])
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    points = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True)[:, 0]


def _min_p(logits: Tensor, min_p: list[float]) -> Tensor:
    """Drop tokens less likely than ``min_p`` times the most likely one."""
    if not any(min_p):
        return logits
    floor = logits.amax(dim=-1, keepdim=True) + logits.new_tensor(min_p).log()[:, None]
    return logits.masked_fill(logits < floor, -torch.inf)


def _top_k(logits: Tensor, top_k: list[int]) -> Tensor:
    """Keep the ``top_k`` largest, and all that equal the last of them."""
    rows = [i for i, k in enumerate(top_k) if k < logits.shape[1]]
    if not rows:
        return logits
    k = torch.tensor([top_k[i] for i in rows], device=logits.device)
    index = torch.tensor(rows, device=logits.device)
    largest = logits[index].topk(int(k.max()), dim=-1).values
    floor = logits.new_full((len(top_k), 1), -torch.inf)
    floor[index] = largest.gather(1, k[:, None] - 1)
    return logits.masked_fill(logits < floor, -torch.inf)


def _top_p(probs: Tensor, top_p: list[float]) -> Tensor:
    """Keep the most likely tokens whose probabilities together first reach ``top_p``, and all equal to the last."""
    rows = [i for i, p in enumerate(top_p) if p < 1]
    if not rows:
        return probs
    floor = probs.new_zeros(len(top_p), 1)
    index = torch.tensor(rows, device=probs.device)
    target = probs.new_tensor(top_p)[:, None]
    for width in (*TOP_P_WIDTHS, probs.shape[1]):
        values = probs[index].topk(min(width, probs.shape[1]), dim=-1).values
        sums = values.cumsum(dim=-1, dtype=torch.float64)
        kept = (sums - values < target[index]).sum(dim=-1, keepdim=True).clamp(min=1)
        floor[index] = values.gather(1, kept - 1)
        index = index[sums[:, -1] < target[index, 0]]
        if not len(index):
            break
    return probs.masked_fill(probs < floor, 0.0)


def _sample_logprobs(logits: Tensor, token_ids: list[int], requests: Sequence[Request]) -> list[TokenLogprobs | None]:
    wanted = [(i, r.sampling.logprobs) for i, r in enumerate(requests) if r.sampling.logprobs is not None]
    found: list[TokenLogprobs | None] = [None] * len(requests)
    if not wanted:
        return found
    rows = [i for i, _ in wanted]
    top = [n for _, n in wanted]
    for i, entry in zip(rows, token_logprobs(logits[rows], [token_ids[i] for i in rows], top), strict=True):
        found[i] = entry
    return found
