"""Attention with linear biases (ALiBi, https://huggingface.co/papers/2108.12409), as BLOOM and Falcon have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """The slope of every head, [num_heads] in fp32.

    Semantics: with n heads, n a power of two, ``slope[h] = 2 ** (-8 (h + 1) / n)``; otherwise those of the power of
    two below, followed by every second one of the power of two above.
    """
    below: int = 2 ** math.floor(math.log2(num_heads))
    slopes = _powers(below)
    if below != num_heads:
        slopes = torch.cat([slopes, _powers(2 * below)[::2][: num_heads - below]])
    return slopes


def _powers(count: int) -> Tensor:
    base = torch.tensor(2.0 ** (-8 / count))
    return base ** torch.arange(1, count + 1)
