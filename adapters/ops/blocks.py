"""Low-rank updates of the single blocks of a weight: GraLoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class BlockLowRank(AddOp):
    """A low-rank update of each of k times k blocks of a weight (GraLoRA, https://huggingface.co/papers/2505.20355).

    Its rank is k r, at the memory of rank r. The scale is folded into ``b``.

    Semantics: with ``x[i]`` and ``y[j]`` the blocks of a row, and components ``p = i r / k .. (i + 1) r / k`` of output
    block ``j`` those that read input block ``i``: ``y[j] += sum over i of x[i] @ a[i][:, q] @ b[j][p]``, where
    ``q = j r / k .. (j + 1) r / k``.
    Shape: ``a`` [k, in_features / k, r]; ``b`` [k, r, out_features / k]; k divides r.
    """

    a: Tensor
    b: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        k, _, r = self.a.shape
        parts, a, b = x.view(k, -1), self.a.float(), self.b.float()
        step = r // k
        blocks = []
        for j in range(k):
            read = [parts[i] @ a[i][:, j * step : (j + 1) * step] for i in range(k)]
            blocks.append(torch.cat(read) @ b[j])
        return y + torch.cat(blocks)

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        members, rows, k = *x.shape[:2], self.a.shape[1]
        read = torch.einsum("gnip,gipr->gnir", x.reshape(members, rows, k, -1), self.a)
        exchanged = read.reshape(members, rows, k, k, -1).transpose(2, 3).flatten(3)
        return torch.einsum("gnjr,gjro->gnjo", exchanged, self.b).flatten(2)
