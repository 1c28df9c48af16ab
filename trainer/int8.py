"""INT8 weights with full-precision activations, with gradients.

bitsandbytes' own INT8 product also rounds the activations, which the server does not do: an adapter would be trained
against another function than the one it is served on. The float weight is made anew in forward and backward, so that
only its 8-bit form stays in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn


def use_weight_only_int8(model: nn.Module) -> None:
    """Let every Linear8bitLt of a freshly loaded ``model`` compute ``(x @ CB.T) * (SCB / 127) + bias``.

    Shape: ``CB`` [out, in] int8; ``SCB`` [out], the largest magnitude of each weight row.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            _bind(module)


def _bind(module: Linear8bitLt) -> None:
    weight: Tensor = module.weight.data
    scale: Tensor = module.weight.SCB / 127

    def forward(x: Tensor) -> Tensor:
        y: Tensor = _Int8Linear.apply(x, weight, scale)  # type: ignore[no-untyped-call]
        return y if module.bias is None else y + module.bias

    module.forward = forward


class _Int8Linear(torch.autograd.Function):
    """``(x @ weight.T) * scale`` for x [..., in], weight [out, in] int8, scale [out]; gradient for x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None
