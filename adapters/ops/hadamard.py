"""Updates that are the elementwise product of two low-rank matrices: LoHa of higher ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site

_ELEMENTS = 1 << 24  # of what one step over a few rows computes in between


@dataclass(frozen=True, eq=False)
class Hadamard(AddOp):
    """The elementwise product of two matrices of rank r (LoHa, https://huggingface.co/papers/2108.06098).

    It has rank up to r * r and is applied from its factors, at the memory of rank 2 r: with ``D(v)`` the diagonal
    matrix of ``v`` it is the sum over i of ``D(a1[i]) a2.T b2 D(b1[i])``. The scale is folded into ``a1``.

    Semantics: ``y += ((a1.T @ b1) * (a2.T @ b2)) @ x``.
    Shape: ``a1``, ``a2`` [r, out_features]; ``b1``, ``b2`` [r, in_features].
    """

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        a1, b1, a2, b2 = (tensor.float() for tensor in (self.a1, self.b1, self.a2, self.b2))
        return y + ((a1.T @ b1) * (a2.T @ b2)) @ x

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        widest = self.b1.shape[0] * self.b1.shape[1] * max(self.b1.shape[2], self.a1.shape[2])
        rows = max(1, _ELEMENTS // widest)
        parts = [self._update(x[:, start : start + rows]) for start in range(0, x.shape[1], rows)]
        return torch.cat(parts, dim=1)

    def _update(self, x: Tensor) -> Tensor:
        hidden = (x[:, :, None] * self.b1[:, None]) @ self.b2.mT[:, None]  # [G, n, r, r]
        return ((hidden @ self.a2[:, None]) * self.a1[:, None]).sum(2)
