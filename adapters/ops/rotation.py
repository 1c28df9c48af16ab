"""Features rotated: in blocks (OFT, and the factors of BOFT's butterfly), or in pairs (RoAd)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import AddOp, Op, Site
from hotkernels.products import block_matmul
from hotkernels.row_ops import Rotation, RowOp


@dataclass(frozen=True, eq=False)
class RotateInput(AddOp):
    """Input features, block by block, times a small matrix.

    Semantics: with ``b = change.shape[-1]``, ``x[p] += x[p] @ change[k]`` for the places ``p`` of every block ``k``,
    where ``change`` is the rotation minus the identity (of rotations near it, half-precision numbers hold that
    better). With ``fold`` 1 the places of block ``k`` are ``kb .. (k + 1)b``. Otherwise they are two runs of ``b / 2``
    features, ``fold`` such runs apart: the butterfly of BOFT (https://arxiv.org/abs/2311.06243), whose factor ``i``
    has ``fold = 2 ** i``. A single matrix stands for every block.
    Shape: ``change`` [in_features / b, b, b], or [1, b, b] shared by all blocks.
    """

    SIDE: ClassVar[Literal["input", "output"]] = "input"

    change: Tensor
    fold: int = 1

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        size, out = self.change.shape[-1], y.clone()
        for block in range(len(x) // size):
            places = self._places(block, size)
            out[places] += x[places] @ self.change[block % len(self.change)].float()
        return out

    @override
    def update(self, x: Tensor) -> Tensor:
        size = self.change.shape[-1]
        blocks = self._swapped(x, 2, self.fold).reshape(*x.shape[:-1], -1, size)
        rotated = block_matmul(blocks, self.change).reshape(x.shape)
        return self._swapped(rotated, self.fold, 2)

    @override
    def row_op(self) -> RowOp:
        return Rotation(self.change, self.fold)

    def _places(self, block: int, size: int) -> list[int]:
        if self.fold == 1:
            return list(range(block * size, (block + 1) * size))
        half, (group, run) = size // 2, divmod(block, self.fold)
        first = group * self.fold * size + run * half
        second = first + self.fold * half
        return [*range(first, first + half), *range(second, second + half)]

    def _swapped(self, x: Tensor, outer: int, inner: int) -> Tensor:
        """``x``, its runs numbered by ``outer`` and ``inner`` in the other order: a block side by side, or back."""
        if self.fold == 1:
            return x
        runs = x.reshape(*x.shape[:-1], -1, outer, inner, self.change.shape[-1] // 2)
        return runs.transpose(-2, -3).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class RotateOutput(Op):
    """Output features, block by block, times a small matrix.

    Semantics: ``y[p] += y[p] @ change[k]``; blocks and ``change`` as in ``RotateInput`` with ``fold`` 1.
    Shape: ``change`` [out_features / b, b, b], or [1, b, b] shared by all blocks.
    """

    change: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return RotateInput(self.change).reference(y, y, site)

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + RotateInput(self.change).update(y)


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

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        half, out = self.group_size // 2, torch.empty_like(y)
        for i in range(len(y)):
            partner = i + half if i % self.group_size < half else i - half
            out[i] = y[i] + self.excess[i].float() * y[i] + self.cross[i].float() * y[partner]
        return out

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        partner = y.reshape(*y.shape[:-1], -1, 2, self.group_size // 2).flip(-2).view(y.shape)
        return torch.addcmul(y, y, self.excess[:, None]).addcmul_(partner, self.cross[:, None])
