"""Log-probabilities of tokens, of the model's own logits before any change to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.largest import as_blocks, largest
from server.engine.messages import TokenLogprobs

MIN_WIDTH = 20  # a constant where the API's bound is kept, so that ties do not fall by what other rows ask for


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of ``logits`` [n, vocab]: its token's log-probability and its ``num_top`` most likely tokens."""
    if not token_ids:
        return []
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if not any(num_top):
        return [TokenLogprobs(token, logprob, []) for token, logprob in zip(token_ids, chosen, strict=True)]
    values, places = largest(as_blocks(logprobs, -torch.inf), max(MIN_WIDTH, *num_top))
    values, places = values[:, : logits.shape[1]], places[:, : logits.shape[1]]
    pairs = (list(zip(i, v, strict=True)) for i, v in zip(places.tolist(), values.tolist(), strict=True))
    return [
        TokenLogprobs(token, logprob, best[:n])
        for token, logprob, best, n in zip(token_ids, chosen, pairs, num_top, strict=True)
    ]
