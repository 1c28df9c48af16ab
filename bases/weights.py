"""Reads back what the base computes with: dense weights, and the bytes that all of them take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bases.packed import PackedEmbedding, PackedLinear, is_placeholder

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

PACKED_ROWS = 32  # output features side by side in bitsandbytes' layout for AVX512-BF16


def is_4bit(module: nn.Module) -> TypeGuard[Linear4bit]:
    """Whether ``module`` keeps its weight in 4 bits."""
    return _is_of_bitsandbytes(module, "Linear4bit")


def is_8bit(module: nn.Module) -> TypeGuard[Linear8bitLt]:
    """Whether ``module`` keeps its weight in 8 bits."""
    return _is_of_bitsandbytes(module, "Linear8bitLt")


def _is_of_bitsandbytes(module: nn.Module, name: str) -> bool:
    """Importing bitsandbytes takes more than a second; where nobody has, no layer is one of its."""
    layers = sys.modules.get("bitsandbytes.nn")
    return layers is not None and isinstance(module, getattr(layers, name))


def linear_weight(module: nn.Module) -> Tensor:
    """The weight [out_features, in_features] that a linear map computes with, dequantized, in fp32 on the CPU.

    Of other modules it is the weight as it is. May be called beside the stepping thread: bitsandbytes rearranges
    weights only in a layer's first forward pass, which the runner has done when it is made.
    """
    weight: Any = module.weight
    if isinstance(module, (PackedLinear, PackedEmbedding)):
        weight = module.packed.dense()
    elif is_4bit(module):
        weight = _dequantized_4bit(weight.data, weight.quant_state)
    elif is_8bit(module):
        weight = weight.data.float() * (weight.SCB / 127)[:, None]
    elif isinstance(module, Conv1D):
        weight = weight.T
    dense: Tensor = weight.detach().to("cpu", torch.float32)
    return dense


def _dequantized_4bit(data: Tensor, state: QuantState) -> Tensor:
    if getattr(state, "packing_format_for_cpu", False):
        return unpack_4bit(data, state)
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(data, state)
    return dense


def unpack_4bit(packed: Tensor, state: QuantState) -> Tensor:
    """The weight that bitsandbytes has rearranged for its AVX512-BF16 kernel, in fp32.

    bitsandbytes' own way back changes ``state`` in place and leaves the scales as they are unless they are quantized
    themselves, so it cannot be used on a layer in service.

    Semantics: of 32 output features, a byte holds one weight of feature ``f`` in its low half and one of ``f + 16``
    in its high half; ``W[n, k] = code[nibble] * absmax[k // blocksize, n]``.
    Shape: ``packed`` [N, K / 2] uint8, laid out as [N / 32, K / 2, 16 features * 2]; ``state.absmax``
    [K / blocksize, N] bf16; ``state.code`` [16].
    """
    rows, half = packed.shape
    blocks = packed.view(rows // PACKED_ROWS, half, PACKED_ROWS)
    nibbles = torch.cat((blocks & 0xF, blocks >> 4), dim=-1)  # [N / 32, K / 2, 32 features * 2]
    nibbles = nibbles.view(-1, half, PACKED_ROWS, 2).transpose(1, 2).reshape(rows, 2 * half)
    scales = state.absmax.T.float().repeat_interleave(state.blocksize, dim=1)
    weight: Tensor = state.code.float()[nibbles.long()] * scales
    return weight


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers and of the quantization constants beside them; what is shared counts once."""
    packed = {id(m.packed): m.packed for m in model.modules() if isinstance(m, (PackedLinear, PackedEmbedding))}
    tensors = {tensor.data_ptr(): tensor for tensor in _all_tensors(model)}
    dense = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return dense + sum(weight.nbytes for weight in packed.values())


def _all_tensors(model: nn.Module) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        if is_placeholder(tensor):
            continue
        yield tensor.data
        yield from _constants(getattr(tensor, "quant_state", None))
        if (scales := getattr(tensor, "SCB", None)) is not None:
            yield scales


def _constants(state: QuantState | None) -> Iterator[Tensor]:
    """Scales and code book of 4-bit weights, and those of the scales themselves under double quantization."""
    if state is None:
        return
    for value in (state.absmax, state.code, state.offset):
        if value is not None:
            yield value
    yield from _constants(getattr(state, "state2", None))
