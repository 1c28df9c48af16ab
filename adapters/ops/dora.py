"""The magnitudes of DoRA: every output feature times a gain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import Op, Site


@dataclass(frozen=True, eq=False)
class Magnitude(Op):
    """Every output feature times a gain, the base's bias left out; stands behind the low-rank update of DoRA.

    DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353) computes ``g (W + s B A) x + bias``, where
    ``g = m / ||W + s B A||`` for each output feature.

    Semantics: ``y += excess * y + shift``, where ``excess = g - 1`` and ``shift = -excess * bias``, so that
    ``y = g (y - bias) + bias``. Gains are near one: a half-precision number holds their excess better than themselves.
    Shape: ``excess`` [out_features]; ``shift`` [out_features], or None where the base has no bias.
    """

    excess: Tensor
    shift: Tensor | None = None

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        scaled = y + self.excess.float() * y
        return scaled if self.shift is None else scaled + self.shift.float()

    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.batched."""
        scaled = torch.addcmul(y, y, self.excess[:, None])
        return scaled if self.shift is None else scaled.add_(self.shift[:, None])

    def columns(self, base: int, given: int) -> int:
        """See Op.columns."""
        return self.excess.shape[-1]
