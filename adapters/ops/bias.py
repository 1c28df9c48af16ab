"""A constant added to a module's output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class Bias(AddOp):
    """A constant added to a module's output.

    Semantics: ``y += delta``; where a kind trains the base's own bias, ``delta`` is the trained one minus the base's.
    Shape: ``delta`` [out_features].
    """

    delta: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        return y + self.delta.float()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        return self.delta[:, None].expand(-1, x.shape[1], -1)

    def columns(self, base: int, given: int) -> int:
        """See Op.columns."""
        return self.delta.shape[-1]
