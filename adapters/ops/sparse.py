"""Single weights of a linear map changed: SHiRA, and WaveFT where that is smaller than the whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.ops.base import AddOp, Site


@dataclass(frozen=True, eq=False)
class Sparse(AddOp):
    """A sparse update of a linear map, in compressed rows.

    Semantics: ``y[o] += sum of values[i] * x[inputs[i]]`` over ``starts[o] <= i < starts[o + 1]``, in float32.
    Shape: ``starts`` [out_features + 1], ``inputs`` [n], both int32; ``values`` [n].
    """

    STACKS: ClassVar[bool] = False

    starts: Tensor
    inputs: Tensor
    values: Tensor

    @classmethod
    def build(cls, rows: Tensor, columns: Tensor, values: Tensor, out_features: int) -> Self:
        """The op whose update has ``values`` at ``rows``, ``columns``; values at one place add up. Shape: all [n]."""
        order = torch.argsort(rows.long(), stable=True)
        counts = torch.bincount(rows.long(), minlength=out_features)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(starts.int(), columns[order].int(), values[order])

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        return y + self._dense(len(x)) @ x

    def update(self, x: Tensor) -> Tensor:
        """See AddOp.update."""
        return self._sums(x[0].float().T).T.to(x.dtype)[None]

    def _dense(self, in_features: int) -> Tensor:
        """The update's matrix [out_features, in_features]."""
        rows = torch.repeat_interleave(self.starts.diff())
        matrix = torch.zeros(len(self.starts) - 1, in_features, device=self.values.device)
        return matrix.index_put_((rows, self.inputs.long()), self.values.float(), accumulate=True)

    def _sums(self, x: Tensor) -> Tensor:
        """The products of a stack of one with ``x`` [in_features, k]; [out_features, k].

        A bag of weighted rows for each output feature: faster than torch's sparse products, and the same in any batch.
        """
        return F.embedding_bag(
            self.inputs[0], x.contiguous(), self.starts[0],
            mode="sum", per_sample_weights=self.values[0].float(), include_last_offset=True,
        )  # fmt: skip
