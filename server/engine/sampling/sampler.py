"""Chooses the next token of every row of a batch, and tells log-probabilities.

A row's result depends on its own logits, parameters and history only, never on the rows beside it: filters are
thresholds on the row's own probabilities, and random numbers are a function of seed and position. Log-probabilities
are of the model's own logits before any change to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from hotkernels.logits import argmax, log_probabilities
from server.engine.grammar import Mask
from server.engine.messages import TokenLogprobs
from server.engine.request import Request
from server.engine.sampling.draw import Filters, draw, uniforms
from server.engine.sampling.logits_processors import needs_processing, process_logits


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of ``logits`` [n, vocab]: its token's log-probability and its ``num_top`` most likely tokens."""
    if not token_ids:
        return []
    tokens = torch.tensor(token_ids, device=logits.device)
    chosen, values, places = log_probabilities(logits, tokens, max(num_top))
    if not any(num_top):
        return [TokenLogprobs(token, logprob) for token, logprob in zip(token_ids, chosen.tolist(), strict=True)]
    pairs = (tuple(zip(i, v, strict=True)) for i, v in zip(places.tolist(), values.tolist(), strict=True))
    return [
        TokenLogprobs(token, logprob, best[:n])
        for token, logprob, best, n in zip(token_ids, chosen.tolist(), pairs, num_top, strict=True)
    ]


def token_ranks(logits: Tensor, token_ids: Sequence[int]) -> list[int]:
    """For each row of ``logits`` [n, vocab]: the place of its token, 1 for the most likely."""
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks: list[int] = ((logits > chosen).sum(dim=1) + 1).tolist()
    return ranks


_AGAIN = 0x5851F42D4C957F2D  # what a seed's second stream of random numbers differs by
MIN_TEMPERATURE = 1e-5  # below it a float32 softmax is one-hot anyway


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
    def sample(
        self,
        logits: Tensor,
        requests: Sequence[Request],
        ahead: Sequence[int] = (),
        masks: Sequence[Mask | None] = (),
        *,
        again: bool = False,
    ) -> SamplerOutput:
        """The next token of each of ``requests``, whose logits are the rows of ``logits`` [n, vocab] fp32.

        Where row i is for a token behind the request's draft, ``ahead[i]`` is how many of that stand before it.
        ``masks[i]`` says what its grammar allows there; empty where nobody follows one. ``again``: what was drawn for
        these rows does not count, and other random numbers are drawn by.
        Raises NonFiniteLogitsError when a row has NaN or +infinity, or nothing but -infinity.
        """
        if not requests:
            return SamplerOutput([], [])
        best, tokens = argmax(logits)
        if not all(map(math.isfinite, best.tolist())):
            raise NonFiniteLogitsError("logits are not finite")
        ahead = ahead or [0] * len(requests)
        masked = {i for i, mask in enumerate(masks) if mask is not None}
        changed = [i for i, request in enumerate(requests) if i in masked or needs_processing(request)]
        stream = _AGAIN if again else 0
        if len(changed) == len(requests):
            processed = process_logits(logits, requests, masks)
            tokens = _choose(processed, argmax(processed), requests, ahead, stream)
        elif changed:  # the others' rows are not touched, nor copied
            kept = logits[changed]
            processed = process_logits(kept, [requests[i] for i in changed], [masks[i] for i in changed if masks])
            best[changed], tokens[changed] = argmax(processed)
            logits[changed] = processed
            tokens = _choose(logits, (best, tokens), requests, ahead, stream)
            logits[changed] = kept
        else:
            tokens = _choose(logits, (best, tokens), requests, ahead, stream)
        token_ids: list[int] = tokens.tolist()
        return SamplerOutput(token_ids, _sample_logprobs(logits, token_ids, requests))


def _choose(
    logits: Tensor, likeliest: tuple[Tensor, Tensor], requests: Sequence[Request], ahead: Sequence[int], stream: int
) -> Tensor:
    """One token per row [n], with temperature by chance; ``likeliest`` are the largest logits and their tokens."""
    best, tokens = likeliest
    rows = [i for i, r in enumerate(requests) if r.sampling.temperature > 0 and r.sampling.top_k != 1]
    if len(rows) == len(requests):
        return _draw(logits, best, requests, ahead, stream)
    if rows:
        some, places = [requests[i] for i in rows], [ahead[i] for i in rows]
        tokens[rows] = _draw(logits[rows], best[rows], some, places, stream)
    return tokens


def _draw(logits: Tensor, best: Tensor, requests: Sequence[Request], ahead: Sequence[int], stream: int) -> Tensor:
    """One random token per row [n], each by its own parameters."""
    device = logits.device
    params = [r.sampling for r in requests]
    temperature = torch.tensor([max(p.temperature, MIN_TEMPERATURE) for p in params], device=device)
    filters = Filters(
        top_k=torch.tensor([p.top_k if p.top_k < logits.shape[1] else 0 for p in params], device=device),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        min_p=torch.tensor([p.min_p for p in params], device=device),
    )
    counters = [r.num_output_tokens + skipped for r, skipped in zip(requests, ahead, strict=True)]
    uniform = torch.from_numpy(uniforms([p.seed ^ stream for p in params], counters))
    return draw(logits, best, temperature, filters, uniform.to(device))


def _sample_logprobs(logits: Tensor, token_ids: list[int], requests: Sequence[Request]) -> list[TokenLogprobs | None]:
    wanted = [(i, r.sampling.logprobs) for i, r in enumerate(requests) if r.sampling.logprobs is not None]
    found: list[TokenLogprobs | None] = [None] * len(requests)
    if not wanted:
        return found
    rows = [i for i, _ in wanted]
    concerned = logits if len(rows) == len(logits) else logits[rows]
    named = [requests[i].sampling.logprob_token_ids for i in rows]
    num_top = [0 if ids else n for (_, n), ids in zip(wanted, named, strict=True)]
    entries = token_logprobs(concerned, [token_ids[i] for i in rows], num_top)
    for place, (i, entry, ids) in enumerate(zip(rows, entries, named, strict=True)):
        found[i] = _naming(concerned[place], entry, ids) if ids else entry
    return found


def _naming(logits: Tensor, entry: TokenLogprobs, ids: Sequence[int]) -> TokenLogprobs:
    """``entry`` of the row ``logits`` [vocab]; what it tells are the ``ids`` and its own token, best first."""
    others = [token for token in ids if token != entry.token_id]
    values = torch.log_softmax(logits, dim=-1)[others].tolist()
    told = [(entry.token_id, entry.logprob), *zip(others, values, strict=True)]
    return msgspec.structs.replace(entry, top=tuple(sorted(told, key=lambda pair: (-pair[1], pair[0]))))
