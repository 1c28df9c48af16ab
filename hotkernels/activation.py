"""Activations, alone and as gates."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hotkernels import native
from hotkernels.program import Program, Rows, Variable

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]

_ACTIVATE = native.Function("activate", "ppipiiii")
_KINDS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}


def gated(x: Tensor, kind: Activation, out: Tensor | None = None) -> Tensor:
    """Gate one half of every row by the activation of the other.

    Semantics: ``f(x[:, :n]) * x[:, n:]``. Shape: ``x`` [T, 2 n], its rows any distance apart; returns ``out`` [T, n],
    by default new and contiguous.
    """
    if not native.is_native(x, out):
        return _into(out, gated_torch(x, kind))
    size = x.shape[1] // 2
    y = torch.empty(x.shape[0], size, dtype=torch.float32) if out is None else out
    start = x.data_ptr()
    _ACTIVATE(start, start + 4 * size, x.stride(0), y.data_ptr(), y.stride(0), x.shape[0], size, _KINDS[kind])
    return y


def gated_torch(x: Tensor, kind: Activation) -> Tensor:
    """The twin of ``gated``."""
    gate, up = x.chunk(2, -1)
    return activated_torch(gate, kind) * up


def activated(x: Tensor, kind: Activation, out: Tensor | None = None) -> Tensor:
    """The activation of every number.

    Shape: ``x`` [T, n], its rows any distance apart; returns ``out`` [T, n], which may be ``x``, by default new and
    contiguous.
    """
    if not native.is_native(x, out):
        return _into(out, activated_torch(x, kind))
    y = torch.empty(x.shape, dtype=torch.float32) if out is None else out
    _ACTIVATE(x.data_ptr(), None, x.stride(0), y.data_ptr(), y.stride(0), x.shape[0], x.shape[1], _KINDS[kind])
    return y


def add_activation(program: Program, kind: Activation, x: Rows, y: Variable, *, is_gated: bool) -> None:
    """Add ``gated`` or ``activated`` of whole rows to a program. The rows of ``y`` lie one behind the other."""
    size = x.stride // 2 if is_gated else x.stride
    up = Variable(x.at.number, x.at.offset + 4 * size) if is_gated else None
    program.add(_ACTIVATE, x.at, up, x.stride, y, size, x.count, size, _KINDS[kind])


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


def _into(out: Tensor | None, y: Tensor) -> Tensor:
    return y if out is None else out.copy_(y)
