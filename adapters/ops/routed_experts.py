"""Low-rank updates of routed experts, whose weights are one parameter with the expert as its first dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import Op, Site


@dataclass(frozen=True, eq=False)
class Routed:
    """The site of ops on routed experts: a row is a token with one of the experts it goes to.

    Shape: ``experts`` [n], the expert of each row, ascending.
    """

    experts: Tensor

    def call(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Experts are no module that could be called with other parameters."""
        raise AssertionError("routed experts have no module of their own")


@dataclass(frozen=True, eq=False)
class ExpertLowRank(Op):
    """A low-rank update of every expert.

    Semantics: ``y += (x @ a[e]) @ b[e]`` with ``e`` the row's expert; a scale is folded into ``b`` at load.
    Shape: ``a`` [num_experts, in_features, r]; ``b`` [num_experts, r, out_features].
    """

    STACKS: ClassVar[bool] = False  # a copy of every expert's factors weighs more than the products saved
    PROPORTIONAL_TO: ClassVar[str] = "b"

    a: Tensor
    b: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        assert isinstance(site, Routed)
        expert = int(site.experts)
        return y + (x @ self.a[expert].float()) @ self.b[expert].float()

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """Rows stand in the order of ``site.experts``."""
        assert isinstance(site, Routed)
        return y + expert_product(expert_product(x[0], self.a[0], site.experts), self.b[0], site.experts)


def expert_product(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """Every row times its expert's matrix, one product per expert.

    Semantics: ``y[i] = x[i] @ weight[experts[i]]``.
    Shape: ``x`` [n, in], ``weight`` [num_experts, in, out], ``experts`` [n] ascending; result [n, out].
    """
    last = torch.arange(len(weight), device=experts.device, dtype=experts.dtype)
    stops = torch.searchsorted(experts, last, right=True).to(torch.int32)
    return F.grouped_mm(x, weight, offs=stops)
