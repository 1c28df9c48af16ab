"""Output features rotated and scaled in pairs: RoAd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import Op, Site


@dataclass(frozen=True, eq=False)
class RotatePairs(Op):
    """Every output feature mixed with its partner.

    Semantics: ``y += excess * y + cross * partner(y)``. Of each group of ``group_size`` features, feature ``i`` of the
    first half and feature ``i`` of the second are partners. A rotation by ``t`` scaled by ``s`` has
    ``excess = s cos(t) - 1`` and ``cross = -s sin(t)`` in the first half, ``s sin(t)`` in the second.
    Shape: ``excess``, ``cross`` [out_features].
    """

    excess: Tensor
    cross: Tensor
    group_size: int

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        half, out = self.group_size // 2, torch.empty_like(y)
        for i in range(len(y)):
            partner = i + half if i % self.group_size < half else i - half
            out[i] = y[i] + self.excess[i].float() * y[i] + self.cross[i].float() * y[partner]
        return out

    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.batched."""
        partner = y.reshape(*y.shape[:-1], -1, 2, self.group_size // 2).flip(-2).view(y.shape)
        return torch.addcmul(y, y, self.excess[:, None]).addcmul_(partner, self.cross[:, None])
