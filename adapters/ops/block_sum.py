"""The update of MiSS: blocks of the input summed, times one small matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class BlockSum(AddOp):
    """The sum of the input's blocks, times a matrix (MiSS, https://arxiv.org/abs/2409.15371).

    Semantics: ``y += tile(s @ block, repeats)``, where ``s[j]`` is the sum of ``x[j], x[j + r], x[j + 2r], ...``.
    Shape: ``block`` [r, out_features / repeats].
    """

    block: Tensor
    repeats: int = 1

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        r = len(self.block)
        summed = torch.stack([x[j::r].sum() for j in range(r)])
        return y + (summed @ self.block.float()).repeat(self.repeats)

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        r = self.block.shape[-2]
        padded = pad(x, (0, -x.shape[-1] % r))
        summed = padded.reshape(*x.shape[:-1], -1, r).sum(-2)
        return torch.bmm(summed, self.block).repeat(1, 1, self.repeats)
