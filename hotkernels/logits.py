"""What is asked of logits: the largest, the most likely, and log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from hotkernels import native

_ARGMAX = native.Function("argmax", "piiipp")
_LOG_PROBABILITIES = native.Function("log_probabilities", "piiippipp")


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of every row and where it stands first; of a row with NaN, NaN and where that is.

    Shape: ``logits`` [n, vocab], its rows any distance apart; returns values [n] and places [n] int64.
    """
    if not native.is_native(logits):
        return argmax_torch(logits)
    rows, size = logits.shape
    values, places = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.int64)
    _ARGMAX(logits.data_ptr(), logits.stride(0), rows, size, values.data_ptr(), places.data_ptr())
    return values, places


def argmax_torch(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of ``argmax``."""
    values, places = logits.max(dim=-1)
    return values, places


def log_probabilities(logits: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of one token of every row, and the row's ``k`` most likely tokens.

    Semantics: log-probabilities are ``logits - max - log(sum(exp(logits - max)))``, the sum in a fixed order; of equal
    logits the lower token comes first.
    Shape: ``logits`` [n, vocab], its rows any distance apart; ``tokens`` [n] int64; returns [n], values [n, k]
    descending, and their tokens [n, k] int64, with ``vocab`` in the place of a larger ``k``.
    """
    if not native.is_native(logits):
        return log_probabilities_torch(logits, tokens, k)
    rows, size = logits.shape
    k = min(k, size)
    told = torch.empty(rows, dtype=torch.float32)
    values, places = torch.empty(rows, k, dtype=torch.float32), torch.empty(rows, k, dtype=torch.int64)
    _LOG_PROBABILITIES(
        logits.data_ptr(), logits.stride(0), rows, size, tokens.contiguous().data_ptr(), told.data_ptr(),
        k, values.data_ptr(), places.data_ptr(),
    )  # fmt: skip
    return told, values, places


def log_probabilities_torch(logits: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of ``log_probabilities``."""
    every = torch.log_softmax(logits, dim=-1)
    places = tokens.new_empty(len(logits), 0)
    if k > 0:
        places = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return every.gather(1, tokens[:, None])[:, 0], every.gather(1, places), places
