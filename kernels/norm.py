"""Norms of rows, with the addition of a residual before them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import native

_RMS_NORM = native.Function("rms_norm", "pipffpii")


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """Scale every row to a mean square of one, then by ``weight``.

    Semantics: ``x / sqrt(mean(x ** 2) + eps) * (weight + offset)``, in float32; gemma's ``offset`` is 1.
    Shape: ``x`` [T, n], ``weight`` [n]; returns [T, n] float32, contiguous.
    """
    if not native.is_native(x, weight) or weight.dtype != torch.float32:
        return rms_norm_torch(x, weight, eps, offset=offset)
    y = torch.empty(x.shape, dtype=torch.float32)
    _RMS_NORM(x.data_ptr(), x.stride(0), weight.data_ptr(), offset, eps, y.data_ptr(), x.shape[0], x.shape[1])
    return y


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """The twin of ``rms_norm``."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (weight.float() + offset)
