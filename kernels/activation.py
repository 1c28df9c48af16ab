"""Activations, alone and as gates."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


def gated(x: Tensor, kind: Activation) -> Tensor:
    """Gate one half of every row by the activation of the other.

    Semantics: ``f(x[:, :n]) * x[:, n:]``. Shape: ``x`` [T, 2 n]; returns [T, n].
    """
    return gated_torch(x, kind)


def gated_torch(x: Tensor, kind: Activation) -> Tensor:
    """The twin of ``gated``."""
    gate, up = x.chunk(2, -1)
    return activated_torch(gate, kind) * up


def activated(x: Tensor, kind: Activation) -> Tensor:
    """The activation of every number. Shape: ``x`` [T, n]; returns the same."""
    return activated_torch(x, kind)


def activated_torch(x: Tensor, kind: Activation) -> Tensor:
    """The twin of ``activated``."""
    match kind:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
