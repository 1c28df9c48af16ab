"""Updates that are a Kronecker product: LoKr."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class Kron(AddOp):
    """The Kronecker product of two matrices, never built (LoKr, https://huggingface.co/papers/2309.14859).

    Semantics: ``y += (w1 kron w2) @ x``, where ``w2 = (down @ up).T``, or ``down.T`` without ``up``. With ``x`` read as
    a matrix [in1, in2] this is ``w1 @ x @ w2.T``. The scale is folded into ``w1``.
    Shape: ``w1`` [out1, in1]; ``down`` [in2, r] and ``up`` [r, out2], or ``down`` [in2, out2];
    in1 in2 = in_features, out1 out2 = out_features.
    """

    w1: Tensor
    down: Tensor
    up: Tensor | None = None

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        w2 = self.down.float() if self.up is None else self.down.float() @ self.up.float()  # transposed
        return y + (self.w1.float() @ x.view(-1, len(self.down)) @ w2).flatten()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        members, rows, _ = x.shape
        hidden = torch.bmm(x.reshape(members, -1, self.down.shape[1]), self.down)
        if self.up is not None:
            hidden = torch.bmm(hidden, self.up)
        product = self.w1[:, None] @ hidden.reshape(members, rows, -1, hidden.shape[-1])
        return product.flatten(2)
