"""Low-rank updates: LoRA and every kind that comes down to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class LowRank(AddOp):
    """A low-rank update of a linear map.

    Semantics: ``y += (x @ a) @ b``; a scale (alpha / r, or alpha / sqrt(r)) is folded into ``b`` at load.
    Shape: ``a`` [in_features, r]; ``b`` [r, out_features]: transposed once, so that products read them in order.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[-1]

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        return y + (x @ self.a.float()) @ self.b.float()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        return torch.bmm(torch.bmm(x, self.a), self.b)

    def add_(self, x: Tensor, y: Tensor) -> None:
        """See AddOp.add_."""
        y.addmm_(x @ self.a[0], self.b[0])

    def columns(self, base: int, given: int) -> int:
        """See Op.columns."""
        return self.b.shape[-1]
