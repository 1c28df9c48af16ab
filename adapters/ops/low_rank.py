"""Low-rank updates: LoRA and every kind that comes down to it, also of the input, and from shared factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import AddOp, Site
from hotkernels import row_ops
from hotkernels.products import matmul
from hotkernels.row_ops import RowOp


@dataclass(frozen=True, eq=False)
class LowRank(AddOp):
    """A low-rank update of a linear map.

    Semantics: ``y += (x @ a) @ b``; a scale (alpha / r, or alpha / sqrt(r)) is folded into ``b`` at load.
    Shape: ``a`` [in_features, r]; ``b`` [r, out_features]: transposed once, so that products read them in order.
    """

    PROPORTIONAL_TO: ClassVar[str] = "b"

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[-1]

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + (x @ self.a.float()) @ self.b.float()

    @override
    def update(self, x: Tensor) -> Tensor:
        return matmul(matmul(x, self.a), self.b)

    @override
    def columns(self, base: int, given: int) -> int:
        return self.b.shape[-1]


@dataclass(frozen=True, eq=False)
class LowRankInput(LowRank):
    """A low-rank change of a module's input.

    Semantics: ``x += (x @ a) @ b``.
    Shape: ``a`` [in_features, r]; ``b`` [r, in_features].
    """

    SIDE: ClassVar[Literal["input", "output"]] = "input"
    PROPORTIONAL_TO: ClassVar[str] = ""


@dataclass(frozen=True, eq=False)
class SharedLowRank(AddOp):
    """A low-rank update from a corner of two shared factors, scaled in the middle and at the end.

    VeRA (https://huggingface.co/papers/2310.11454). Every module of an adapter uses the same two tensors, as large as
    its largest module asks for, so members are never copied into a stack.

    Semantics: ``y += ((x @ a[:in]) * inner) @ b[:, :out] * outer``.
    Shape: ``a`` [at least in_features, r]; ``b`` [r, at least out_features]; ``inner`` [r]; ``outer`` [out_features].
    """

    STACKS: ClassVar[bool] = False
    SHARED: ClassVar[tuple[str, ...]] = ("a", "b")
    PROPORTIONAL_TO: ClassVar[str] = "outer"

    a: Tensor
    b: Tensor
    inner: Tensor
    outer: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        hidden = (x @ self.a[: len(x)].float()) * self.inner.float()
        return y + (hidden @ self.b[:, : len(y)].float()) * self.outer.float()

    @override
    def update(self, x: Tensor) -> Tensor:
        a, b = self.a[:, : x.shape[-1]], self.b[:, :, : self.outer.shape[-1]]
        return matmul(matmul(x, a) * self.inner[:, None], b) * self.outer[:, None]

    @override
    def row_op(self) -> RowOp:
        return row_ops.SharedLowRank(self.a, self.b, self.inner, self.outer)


@dataclass(frozen=True, eq=False)
class RandomBases(AddOp):
    """The sum of n low-rank products, of one random factor scaled n times and another random factor's n parts.

    RandLoRA (https://huggingface.co/papers/2502.00987). A module computes with a corner of the two shared tensors;
    its own numbers are few, while the sum has full rank. So the scaled factor is made anew in every call, and members
    are never copied into a stack.

    Semantics: ``y += x @ small.T @ big[: n r, : out]`` where the module has no more inputs than outputs, otherwise
    ``y += x @ big[: n r, : in].T @ small``; row ``i n + k`` of ``small`` is ``scales[i, k] * a[i, : m] * gains[k]``.
    Shape: ``a`` [r, at least m] with ``m = min(in_features, out_features)``; ``big`` [at least n r, at least
    max(in_features, out_features)]; ``scales`` [r, n]; ``gains`` [n, m].
    """

    STACKS: ClassVar[bool] = False
    SHARED: ClassVar[tuple[str, ...]] = ("a", "big")
    PROPORTIONAL_TO: ClassVar[str] = "gains"

    a: Tensor
    big: Tensor
    scales: Tensor
    gains: Tensor
    out_features: int

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        (r, n), m = self.scales.shape, self.gains.shape[1]
        scales, gains, a = self.scales.float(), self.gains.float(), self.a[:, :m].float()
        small = torch.stack([scales[i, k] * a[i] * gains[k] for i in range(r) for k in range(n)])
        big = self.big[: r * n].float()
        if m == len(x):
            return y + x @ small.T @ big[:, : len(y)]
        return y + x @ big[:, : len(x)].T @ small

    @override
    def update(self, x: Tensor) -> Tensor:
        m, in_features = self.gains.shape[-1], x.shape[-1]
        scaled = self.scales[..., None] * self.a[:, :, None, :m] * self.gains[:, None]
        small = scaled.flatten(1, 2)
        big = self.big[:, : small.shape[1]]
        if m == in_features:
            return matmul(matmul(x, small.mT), big[..., : self.out_features])
        return matmul(matmul(x, big[..., :in_features].mT), small)
