"""Updates that are other products of factors: Kronecker, elementwise, block by block, of summed inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from adapters.ops.op import AddOp, Site
from hotkernels import row_ops
from hotkernels.products import block_matmul, matmul
from hotkernels.row_ops import RowOp


@dataclass(frozen=True, eq=False)
class Kron(AddOp):
    """The Kronecker product of two matrices, never built (LoKr, https://huggingface.co/papers/2309.14859).

    Semantics: ``y += (w1 kron w2) @ x``, where ``w2 = (down @ up).T``, or ``down.T`` without ``up``. With ``x`` read as
    a matrix [in1, in2] this is ``w1 @ x @ w2.T``. The scale is folded into ``w1``.
    Shape: ``w1`` [out1, in1]; ``down`` [in2, r] and ``up`` [r, out2], or ``down`` [in2, out2];
    in1 in2 = in_features, out1 out2 = out_features.
    """

    PROPORTIONAL_TO: ClassVar[str] = "w1"

    w1: Tensor
    down: Tensor
    up: Tensor | None = None

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        w2 = self.down.float() if self.up is None else self.down.float() @ self.up.float()  # transposed
        return y + (self.w1.float() @ x.view(-1, len(self.down)) @ w2).flatten()

    @override
    def update(self, x: Tensor) -> Tensor:
        members, rows, _ = x.shape
        hidden = matmul(x.reshape(members, -1, self.down.shape[1]), self.down)
        if self.up is not None:
            hidden = matmul(hidden, self.up)
        columns = hidden.view(members, rows, -1, hidden.shape[-1]).transpose(2, 3)  # [G, n, out2, in1]
        product = matmul(columns.reshape(members, -1, columns.shape[3]), self.w1.mT)
        return product.view(*columns.shape[:3], -1).transpose(2, 3).flatten(2)

    @override
    def row_op(self) -> RowOp:
        return row_ops.Kron(self.w1, self.down, self.up)


_STEP_ELEMENTS = 1 << 24  # of what one step over a few rows computes in between


@dataclass(frozen=True, eq=False)
class Hadamard(AddOp):
    """The elementwise product of two matrices of rank r (LoHa, https://huggingface.co/papers/2108.06098).

    It has rank up to r * r and is applied from its factors, at the memory of rank 2 r: with ``D(v)`` the diagonal
    matrix of ``v`` it is the sum over i of ``D(a1[i]) a2.T b2 D(b1[i])``. The scale is folded into ``a1``.

    Semantics: ``y += ((a1.T @ b1) * (a2.T @ b2)) @ x``.
    Shape: ``a1``, ``a2`` [r, out_features]; ``b1``, ``b2`` [r, in_features].
    """

    PROPORTIONAL_TO: ClassVar[str] = "a1"

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        a1, b1, a2, b2 = (tensor.float() for tensor in (self.a1, self.b1, self.a2, self.b2))
        return y + ((a1.T @ b1) * (a2.T @ b2)) @ x

    @override
    def update(self, x: Tensor) -> Tensor:
        widest = self.b1.shape[0] * self.b1.shape[1] * max(self.b1.shape[2], self.a1.shape[2])
        rows = max(1, _STEP_ELEMENTS // widest)
        parts = [self._update(x[:, start : start + rows]) for start in range(0, x.shape[1], rows)]
        return torch.cat(parts, dim=1)

    def _update(self, x: Tensor) -> Tensor:
        scaled = x[:, :, None] * self.b1[:, None]  # [G, n, r, in]
        hidden = matmul(scaled.flatten(1, 2), self.b2.mT)  # [G, n r, r]
        return (matmul(hidden, self.a2).view(*scaled.shape[:3], -1) * self.a1[:, None]).sum(2)


@dataclass(frozen=True, eq=False)
class BlockLowRank(AddOp):
    """A low-rank update of each of k times k blocks of a weight (GraLoRA, https://huggingface.co/papers/2505.20355).

    Its rank is k r, at the memory of rank r. The scale is folded into ``b``.

    Semantics: with ``x[i]`` and ``y[j]`` the blocks of a row, and components ``p = i r / k .. (i + 1) r / k`` of output
    block ``j`` those that read input block ``i``: ``y[j] += sum over i of x[i] @ a[i][:, q] @ b[j][p]``, where
    ``q = j r / k .. (j + 1) r / k``.
    Shape: ``a`` [k, in_features / k, r]; ``b`` [k, r, out_features / k]; k divides r.
    """

    PROPORTIONAL_TO: ClassVar[str] = "b"

    a: Tensor
    b: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        k, _, r = self.a.shape
        parts, a, b = x.view(k, -1), self.a.float(), self.b.float()
        step = r // k
        blocks = []
        for j in range(k):
            read = [parts[i] @ a[i][:, j * step : (j + 1) * step] for i in range(k)]
            blocks.append(torch.cat(read) @ b[j])
        return y + torch.cat(blocks)

    @override
    def update(self, x: Tensor) -> Tensor:
        members, rows, k = *x.shape[:2], self.a.shape[1]
        read = block_matmul(x.reshape(members, rows, k, -1), self.a)
        exchanged = read.reshape(members, rows, k, k, -1).transpose(2, 3).flatten(3)
        return block_matmul(exchanged, self.b).flatten(2)


@dataclass(frozen=True, eq=False)
class BlockSum(AddOp):
    """The sum of the input's blocks, times a matrix (MiSS, https://arxiv.org/abs/2409.15371).

    Semantics: ``y += tile(s @ block, repeats)``, where ``s[j]`` is the sum of ``x[j], x[j + r], x[j + 2r], ...``.
    Shape: ``block`` [r, out_features / repeats].
    """

    PROPORTIONAL_TO: ClassVar[str] = "block"

    block: Tensor
    repeats: int = 1

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        r = len(self.block)
        summed = torch.stack([x[j::r].sum() for j in range(r)])
        return y + (summed @ self.block.float()).repeat(self.repeats)

    @override
    def update(self, x: Tensor) -> Tensor:
        r = self.block.shape[-2]
        padded = pad(x, (0, -x.shape[-1] % r))
        summed = padded.reshape(*x.shape[:-1], -1, r).sum(-2)
        return matmul(summed, self.block).repeat(1, 1, self.repeats)
