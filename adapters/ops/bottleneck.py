"""A small network on a module's output: Houlsby's and Pfeiffer's adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.ops.base import Op, Site

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

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        inner = ACTIVATIONS[self.activation](y @ self.down.float() + self.down_bias.float())
        return y + inner @ self.up.float() + self.up_bias.float()

    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.batched."""
        inner = ACTIVATIONS[self.activation](torch.baddbmm(self.down_bias[:, None], y, self.down))
        return y + torch.baddbmm(self.up_bias[:, None], inner, self.up)
