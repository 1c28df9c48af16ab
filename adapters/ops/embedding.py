"""Low-rank updates of the input embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import embedding

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class LowRankEmbedding(AddOp):
    """A low-rank update of the input embedding, whose input rows are token ids.

    Semantics: ``y += a[token] @ b``; the scale is folded into ``b`` at load. Ids beyond the vocabulary (an adapter's
    own tokens, which other ops fill in) are taken for its nearest one.
    Shape: ``a`` [vocab_size, r]; ``b`` [r, hidden_size].
    """

    STACKS: ClassVar[bool] = False  # a few rows of a table are read, which is no reason to copy the table

    a: Tensor
    b: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        token = min(max(int(x[0]), 0), len(self.a) - 1)
        return y + self.a[token].float() @ self.b.float()

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        tokens = x[0, :, 0].clamp(0, self.a.shape[1] - 1)
        return (embedding(tokens, self.a[0]) @ self.b[0])[None]
