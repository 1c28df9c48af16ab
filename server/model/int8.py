"""INT8 weights with full-precision activations.

bitsandbytes' own INT8 product also rounds the activations, to 1/127 of their row's largest. Inputs that differ in the
last bit then move by whole steps, layer after layer: on SmolLM2-135M the logits of one sequence differ by up to 3.5
between a full and an incremental forward pass of the same library. A batch must not change its rows, so only the
weights are kept in 8 bits here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn


def use_weight_only_int8(model: nn.Module) -> None:
    """Let every Linear8bitLt of a freshly loaded ``model`` compute ``(x @ CB.T) * (SCB / 127) + bias``.

    In fp16 the product could exceed what the type holds, so the weight is scaled first.

    Shape: ``CB`` [out, in] int8; ``SCB`` [out], the largest magnitude of each weight row. The module then holds
    nothing but these.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            _bind(module)


def _bind(module: Linear8bitLt) -> None:
    weight: Tensor = module.weight.data
    scale: Tensor = module.weight.SCB / 127
    bias: Tensor | None = module.bias

    def forward(x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)
        y = (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)
        return y if bias is None else y + bias

    module.forward = forward
