"""Changes to logits that a request asks for: bias, penalties, its grammar, tokens it allows or forbids.

Work is proportional to the tokens concerned, and to rows × vocabulary only where tokens are allowed or forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.grammar import Mask
from server.engine.request import Request


def needs_processing(request: Request) -> bool:
    """Whether any of the changes but that of a grammar concerns the request's next token."""
    if request.history or request.bias or request.allowed is not None or request.bad_words:
        return True
    return bool(request.forbids_stop and request.stop_ids)


def process_logits(logits: Tensor, requests: Sequence[Request], masks: Sequence[Mask | None] = ()) -> Tensor:
    """``logits`` [n, vocab] of ``requests`` after bias, penalties, and what they allow and forbid; the input is kept.

    ``masks`` are of their grammars, one a row, None without. No row is left without a token: what would forbid all that
    is allowed forbids nothing.
    """
    logits = logits.clone()
    _add_bias(logits, requests)
    _penalize(logits, requests)
    _keep_grammatical(logits, masks)
    _keep_allowed(logits, requests)
    _forbid(logits, requests)
    return logits


def _add_bias(logits: Tensor, requests: Sequence[Request]) -> None:
    biased = [(i, r.bias) for i, r in enumerate(requests) if r.bias is not None]
    if biased:
        rows, tokens = _pairs(logits, [(i, bias.tokens) for i, bias in biased])
        values = torch.from_numpy(np.concatenate([bias.values for _, bias in biased]))
        logits[rows, tokens] += values.to(logits)


def _penalize(logits: Tensor, requests: Sequence[Request]) -> None:
    """Lower the logits l(t) of tokens t that occurred, c(t) times in the output.

    Semantics: l(t) is divided by the repetition penalty if positive, else multiplied by it; then
    ``l(t) -= frequency * c(t) + presence * (c(t) > 0)``.
    """
    histories = [(i, r.history) for i, r in enumerate(requests) if r.history]
    if not histories:
        return
    rows, tokens = _pairs(logits, [(i, history.tokens) for i, history in histories])
    counts = torch.from_numpy(np.concatenate([history.output_counts for _, history in histories])).to(logits)
    params = [r.sampling for r in requests]
    repetition = logits.new_tensor([p.repetition_penalty for p in params])[rows]
    frequency = logits.new_tensor([p.frequency_penalty for p in params])[rows]
    presence = logits.new_tensor([p.presence_penalty for p in params])[rows]
    values = logits[rows, tokens]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[rows, tokens] = values - frequency * counts - presence * (counts > 0)


def _keep_grammatical(logits: Tensor, masks: Sequence[Mask | None]) -> None:
    """Tokens that a mask does not reach are not in it."""
    masked = [(i, mask) for i, mask in enumerate(masks) if mask is not None]
    if not masked:
        return
    width = logits.shape[1]
    bits = np.zeros((len(masked), -(-width // 8)), dtype=np.uint8)
    for line, (_, mask) in zip(bits, masked, strict=True):
        line[: len(mask)] = mask[: len(line)]
    forbidden = torch.from_numpy(np.unpackbits(bits, axis=1, count=width, bitorder="little") == 0).to(logits.device)
    if len(masked) == len(logits):
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        rows = [i for i, _ in masked]
        logits[rows] = logits[rows].masked_fill_(forbidden, -torch.inf)


def _keep_allowed(logits: Tensor, requests: Sequence[Request]) -> None:
    limited = [(i, r.allowed) for i, r in enumerate(requests) if r.allowed is not None]
    if limited:
        rows, tokens = _pairs(logits, limited)
        kept = logits[rows, tokens]
        logits[[i for i, _ in limited]] = -torch.inf
        logits[rows, tokens] = kept


def _forbid(logits: Tensor, requests: Sequence[Request]) -> None:
    vocab_size = logits.shape[1]
    found = ((i, [t for t in r.forbidden_tokens if 0 <= t < vocab_size]) for i, r in enumerate(requests))
    forbidden = [(i, np.array(tokens, dtype=np.int64)) for i, tokens in found if tokens]
    if forbidden:
        rows, tokens = _pairs(logits, forbidden)
        before = logits[rows, tokens]
        logits[rows, tokens] = -torch.inf
        emptied = logits.amax(dim=-1) == -torch.inf
        logits[rows, tokens] = before.where(emptied[rows], -torch.inf)


def _pairs(logits: Tensor, tokens_by_row: Sequence[tuple[int, NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
    """Index tensors (rows, tokens) of all tokens of all rows listed."""
    numbers = np.array([row for row, _ in tokens_by_row], dtype=np.int64)
    rows = np.repeat(numbers, [len(tokens) for _, tokens in tokens_by_row])
    tokens = np.concatenate([tokens for _, tokens in tokens_by_row])
    return torch.from_numpy(rows).to(logits.device), torch.from_numpy(tokens).to(logits.device)
