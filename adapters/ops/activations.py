"""Changes of a module's activations: biases, gains, and a small network on its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import AddOp, Op, Site
from hotkernels.products import matmul
from hotkernels.row_ops import Affine, RowOp


@dataclass(frozen=True, eq=False)
class Bias(AddOp):
    """A constant added to a module's output.

    Semantics: ``y += delta``; where a kind trains the base's own bias, ``delta`` is the trained one minus the base's.
    Shape: ``delta`` [out_features].
    """

    PROPORTIONAL_TO: ClassVar[str] = "delta"

    delta: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + self.delta.float()

    @override
    def update(self, x: Tensor) -> Tensor:
        return self.delta[:, None].expand(-1, x.shape[1], -1)

    @override
    def columns(self, base: int, given: int) -> int:
        return self.delta.shape[-1]

    @override
    def row_op(self) -> RowOp:
        return Affine(None, self.delta)


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

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        scaled = y + self.excess.float() * y
        return scaled if self.shift is None else scaled + self.shift.float()

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        scaled = torch.addcmul(y, y, self.excess[:, None])
        return scaled if self.shift is None else scaled.add_(self.shift[:, None])

    @override
    def columns(self, base: int, given: int) -> int:
        return self.excess.shape[-1]

    @override
    def row_op(self) -> RowOp:
        return Affine(self.excess, self.shift)


@dataclass(frozen=True, eq=False)
class ScaleInput(AddOp):
    """Every input feature times a gain.

    Semantics: ``x += excess * x``, where ``excess = gain - 1``: gains are near one, and a half-precision number holds
    their excess better than themselves.
    Shape: ``excess`` [in_features].
    """

    SIDE: ClassVar[Literal["input", "output"]] = "input"

    excess: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + self.excess.float() * x

    @override
    def update(self, x: Tensor) -> Tensor:
        return x * self.excess[:, None]

    @override
    def row_op(self) -> RowOp:
        return Affine(self.excess, None)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, eq=False)
class Bottleneck(Op):
    """A bottleneck of two linear maps with a residual connection (Houlsby et al. 2019, Pfeiffer et al. 2020).

    Semantics: ``y += activation(y @ down + down_bias) @ up + up_bias``; a scale is folded into ``up``, ``up_bias``.
    Shape: ``down`` [out_features, m]; ``down_bias`` [m]; ``up`` [m, out_features]; ``up_bias`` [out_features].
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        inner = ACTIVATIONS[self.activation](y @ self.down.float() + self.down_bias.float())
        return y + inner @ self.up.float() + self.up_bias.float()

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        inner = ACTIVATIONS[self.activation](matmul(y, self.down) + self.down_bias[:, None])
        return y + (matmul(inner, self.up) + self.up_bias[:, None])
