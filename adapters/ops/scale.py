"""Input features times a gain: IA3 before a feed-forward map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class ScaleInput(AddOp):
    """Every input feature times a gain.

    Semantics: ``x += excess * x``, where ``excess = gain - 1``: gains are near one, and a half-precision number holds
    their excess better than themselves.
    Shape: ``excess`` [in_features].
    """

    SIDE: ClassVar[Literal["input", "output"]] = "input"

    excess: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        return y + self.excess.float() * x

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        return x * self.excess[:, None]
