"""Low-rank updates whose factors are shared by all modules of an adapter: VeRA and PVeRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class SharedLowRank(AddOp):
    """A low-rank update from a corner of two shared factors, scaled in the middle and at the end.

    VeRA (https://huggingface.co/papers/2310.11454). Every module of an adapter uses the same two tensors, as large as
    its largest module asks for, so members are never copied into a stack.

    Semantics: ``y += ((x @ a[:in]) * inner) @ b[:, :out] * outer``.
    Shape: ``a`` [at least in_features, r]; ``b`` [r, at least out_features]; ``inner`` [r]; ``outer`` [out_features].
    """

    STACKS: ClassVar[bool] = False

    a: Tensor
    b: Tensor
    inner: Tensor
    outer: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        hidden = (x @ self.a[: len(x)].float()) * self.inner.float()
        return y + (hidden @ self.b[:, : len(y)].float()) * self.outer.float()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        a, b = self.a[:, : x.shape[-1]], self.b[:, :, : self.outer.shape[-1]]
        return torch.bmm(torch.bmm(x, a) * self.inner[:, None], b) * self.outer[:, None]
