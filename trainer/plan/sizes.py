"""Bytes of weights and of optimizer states, as bitsandbytes and torch keep them.

Block statistics and code tables of quantized weights are included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from bases.names import split_quantization

BLOCK = 64  # weights that share one scale
_NESTED_BLOCK = 256  # scales that share one scale of their own (double quantization)
_FLOAT = 4
_CODE = 16 * _FLOAT
_NESTED_CODE = 256 * _FLOAT


def predicted_weight_bytes(model: Any, quantize: str) -> int:
    """Bytes of the base ``model`` held under ``quantize``: embeddings, head and norms stay as they are."""
    held = tensor_bytes(model)
    for linear in quantized_linears(model, quantize):
        weight = linear.weight
        held += linear_bytes(weight.numel(), weight.shape[0], quantize) - weight.numel() * weight.element_size()
    return held


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``model``, each storage once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum({id(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors}.values())


def linear_bytes(weights: int, outputs: int, quantize: str) -> int:
    """Bytes of one linear map's ``weights`` under ``quantize``, measured on bitsandbytes 0.50.

    int8: a byte a weight and a float32 scale an output. 4 bits: half a byte a weight, a float32 scale a block of 64 and
    a code table; double quantization keeps the scales as bytes, with a float32 a 256 of them, a table and an offset.
    """
    if quantize == "int8":
        return weights + outputs * _FLOAT
    blocks = math.ceil(weights / BLOCK)
    packed = math.ceil(weights / 2) + _CODE
    if not split_quantization(quantize)[1]:
        return packed + blocks * _FLOAT
    return packed + blocks + math.ceil(blocks / _NESTED_BLOCK) * _FLOAT + _NESTED_CODE + _FLOAT


def quantized_linears(model: Any, quantize: str) -> list[nn.Linear]:
    """The linear maps that ``quantize`` replaces: all but the head."""
    if quantize in ("none", "gguf"):  # the trainer computes with a GGUF file's values in plain modules
        return []
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model)
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(name == key or name.startswith(f"{key}.") for key in kept)
    ]


def largest_linear(model: Any, quantize: str) -> int:
    """Bytes of the largest quantized weight in the dtype that computes: it is made whole for every product."""
    weights = [linear.weight for linear in quantized_linears(model, quantize)]
    return max((weight.numel() * weight.element_size() for weight in weights), default=0)


_SMALL = 4096  # bitsandbytes keeps states of fewer values in float32
_STATE_BLOCK = 256  # 8-bit values that share one float32 scale


def state_bytes(parameters: Sequence[nn.Parameter], optimizer: str) -> int:
    """Bytes that ``optimizer`` keeps for ``parameters`` from its first step on."""
    return sum(map(_STATES[optimizer], parameters))


def _full(copies: int) -> Callable[[nn.Parameter], int]:
    """States of the parameter's own size and dtype."""
    return lambda parameter: copies * parameter.numel() * parameter.element_size()


def _eight_bit(copies: int) -> Callable[[nn.Parameter], int]:
    def held(parameter: nn.Parameter) -> int:
        count = parameter.numel()
        return copies * (4 * count if count < _SMALL else count + 4 * math.ceil(count / _STATE_BLOCK))

    return held


def _factored(parameter: nn.Parameter) -> int:
    """Adafactor: a float32 per row and per column of a matrix."""
    *outer, rows, columns = [1, *parameter.shape] if parameter.dim() > 1 else [1, parameter.numel(), 0]
    return 4 * math.prod(outer) * (rows + columns)


_STATES: dict[str, Callable[[nn.Parameter], int]] = {
    "adamw": _full(2),
    "adamw_8bit": _eight_bit(2),
    "paged_adamw_8bit": _eight_bit(2),
    "lion": _full(1),
    "lion_8bit": _eight_bit(1),
    "adafactor": _factored,
    "sgd": lambda _parameter: 0,
}
