"""A whole matrix added to a linear map's weight: for updates that nothing smaller describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class Delta(AddOp):
    """A dense update of a linear map. It weighs as much as the map itself, so members are never copied into a stack.

    Semantics: ``y += x @ weight``.
    Shape: ``weight`` [in_features, out_features].
    """

    STACKS: ClassVar[bool] = False

    weight: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        return y + x @ self.weight.float()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        return torch.bmm(x, self.weight)

    def add_(self, x: Tensor, y: Tensor) -> None:
        """See AddOp.add_."""
        y.addmm_(x, self.weight[0])
