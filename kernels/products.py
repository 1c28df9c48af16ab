"""Products of a stack of matrices, one for each member of a group of adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native

_MATMUL = native.Function("matmul", "piipiiipiiii")


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """The product of every matrix of a stack, the same for a row whatever rows are beside it.

    Semantics: ``y[g] = x[g] @ w[g]``, in float32, added up in order.
    Shape: ``x`` [G, n, in], ``w`` [G, in, out] float32, bfloat16 or float16, its rows and those of ``x`` any distance
    apart; returns [G, n, out] in ``x``'s type.
    """
    if not native.is_native(x, w) or w.dtype not in native.STORED:
        return matmul_torch(x, w)
    groups, rows, size = x.shape
    y = torch.empty(groups, rows, w.shape[2], dtype=torch.float32)
    _MATMUL(
        x.data_ptr(), x.stride(0), x.stride(1),
        w.data_ptr(), native.STORED[w.dtype], w.stride(0), w.stride(1),
        y.data_ptr(), groups, rows, size, w.shape[2],
    )  # fmt: skip
    return y


def matmul_torch(x: Tensor, w: Tensor) -> Tensor:
    """The twin of ``matmul``."""
    return torch.bmm(x, w.to(x.dtype))
