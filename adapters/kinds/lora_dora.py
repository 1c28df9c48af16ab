"""DoRA's gains, computed once from the base's weight."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.names import shown
from adapters.ops.dora import Magnitude

_CHUNK = 1 << 22  # elements of the updated weight that exist at once


def row_norms(weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """The norm of every row of ``weight + b @ a``, a few rows at a time.

    Shape: ``weight`` [out, in]; ``b`` [out, r]; ``a`` [r, in]; result [out].
    """
    rows = max(1, _CHUNK // weight.shape[1])
    parts = zip(torch.split(weight, rows), torch.split(b, rows), strict=True)
    return torch.cat([torch.linalg.norm(w + part @ a, dim=1) for w, part in parts])


def magnitude(name: str, trained: Tensor, norms: Tensor, bias: Tensor | None) -> Magnitude:
    """The op of the magnitudes ``trained``, saved as ``name``, over rows of ``norms``. Shape: all [out]."""
    expect_shape(name, trained, tuple(norms.shape), "the shape suggests that the adapter was made for another base")
    excess = trained.float() / norms - 1
    if not bool(torch.isfinite(excess).all()):
        raise PackageError(f"tensor {shown(name)}: some output feature of the updated weight is all zero or not finite")
    return Magnitude(excess, None if bias is None else -excess * bias.detach().cpu().float())
