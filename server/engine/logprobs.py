"""Log-probabilities of tokens, of the model's own logits before any change to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.messages import TokenLogprobs


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of ``logits`` [n, vocab]: its token's log-probability and its ``num_top`` most likely tokens."""
    if not token_ids:
        return []
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    top = logprobs.topk(min(max(num_top), logits.shape[1]), dim=-1)
    pairs = (list(zip(i, v, strict=True)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return [
        TokenLogprobs(token, logprob, best[:n])
        for token, logprob, best, n in zip(token_ids, chosen, pairs, num_top, strict=True)
    ]
