"""How the base's weights are kept: quantized by us at load, or as a checkpoint was saved.

bitsandbytes' own INT8 product also rounds the activations, to 1/127 of their row's largest. Inputs that differ in the
last bit then move by whole steps, layer after layer: on SmolLM2-135M the logits of one sequence differ by up to 3.5
between a full and an incremental forward pass of the same library. A batch must not change its rows, so only the
weights are kept in 8 bits here, in training as in serving. It does not know how weights are read back
(``bases.weights``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from bases.errors import QuantizationError
from bases.finding import default_quantization
from bases.names import QUANTIZATIONS, join_quantization, split_quantization
from bases.weights import PACKED_ROWS, is_4bit, is_8bit

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

GGUF_MARK = "has_gguf_values"  # of a model whose plain weights are those of a GGUF file


def quantization_config(name: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What to tell transformers about the quantization called ``name``; None where it is to load plain weights."""
    if name in ("none", "gguf"):
        return None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    kind, double = split_quantization(name)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )


def choose_quantization(asked: str, hf_config: Any, directory: Path) -> tuple[str, str]:
    """How the weights will be kept, and how to quantize them for that ("none" where the checkpoint is so already).

    ``asked`` is ``--quantize``. Raises QuantizationError when the checkpoint in ``directory`` is already quantized in
    another way, or in one that is not served.
    """
    saved = saved_quantization(hf_config)
    if saved == "none":
        name = default_quantization(directory) if asked == "auto" else asked
        return name, name
    if saved not in QUANTIZATIONS:
        raise QuantizationError(
            f"the checkpoint is quantized with {saved}; of quantized checkpoints only those of bitsandbytes in 4 and 8 "
            "bits are served. Take the unquantized checkpoint and --quantize it"
        )
    if asked not in ("auto", saved):
        raise QuantizationError(
            f"the checkpoint is quantized already, to {saved}: leave --quantize out or give --quantize {saved}, "
            f"not {asked}"
        )
    return saved, "none"


def saved_quantization(hf_config: Any) -> str:
    """How a config says that its weights are kept: one of QUANTIZATIONS, or the name of a method that is not ours."""
    found = getattr(hf_config, "quantization_config", None)
    if found is None:
        return "none"
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    if fields.get("load_in_4bit"):
        kind = str(fields.get("bnb_4bit_quant_type", "fp4"))
        return join_quantization(kind, double=bool(fields.get("bnb_4bit_use_double_quant")))
    if fields.get("load_in_8bit") and not fields.get("llm_int8_has_fp16_weight"):
        return "int8"
    return str(fields.get("quant_method", "an unknown method"))


def quantization_of(model: Any) -> str:
    """How the weights of a loaded ``model`` are kept."""
    if getattr(model, GGUF_MARK, False):
        return "gguf"
    return saved_quantization(model.config) if getattr(model, "is_quantized", False) else "none"


def prepare_quantized(model: nn.Module, dtype: torch.dtype, *, for_training: bool = False) -> None:
    """Make the quantized layers of a freshly loaded ``model`` compute in ``dtype``, whatever its checkpoint says.

    On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights at the first forward in eval mode, after which backward
    gives no gradient: training would stop learning at its first evaluation. So it may do so only for serving.
    """
    use_weight_only_int8(model)
    for module in model.modules():
        if is_4bit(module):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
            if module.support_avx512bf16_for_cpu:
                module.support_avx512bf16_for_cpu = not for_training and _fits_bf16_kernel(module, dtype)


def _fits_bf16_kernel(module: Linear4bit, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes may repack the weight for its fused kernel on CPUs with AVX512-BF16.

    Left alone it does so for every layer: shapes that the layout does not fit then fail an assertion, and the kernel
    computes in bf16 even when the inputs are fp32.
    """
    rows, columns = module.out_features, module.in_features
    return dtype == torch.bfloat16 and rows % PACKED_ROWS == 0 and columns % module.weight.blocksize == 0


def use_weight_only_int8(model: nn.Module) -> None:
    """Let every Linear8bitLt of a freshly loaded ``model`` compute ``(x @ CB.T) * (SCB / 127) + bias``.

    Shape: ``CB`` [out, in] int8; ``SCB`` [out], the largest magnitude of each weight row. The module then holds
    nothing but these.
    """
    for module in model.modules():
        if is_8bit(module):
            _bind_int8(module)


def _bind_int8(module: Linear8bitLt) -> None:
    weight: Tensor = module.weight.data
    scale: Tensor = module.weight.SCB / 127

    def forward(x: Tensor) -> Tensor:
        y: Tensor
        if torch.is_grad_enabled() and x.requires_grad:
            y = _Int8Product.apply(x, weight, scale)  # type: ignore[no-untyped-call]
        else:
            y = _int8_product(x, weight, scale)
        return y if module.bias is None else y + module.bias

    module.forward = forward


def _int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """``(x @ weight.T) * scale``, scaled in fp32 and rounded once.

    In fp16 the product could exceed what the type holds, so the weight is scaled first.

    Shape: x [..., in], weight [out, in] int8, scale [out] fp32.
    """
    if x.dtype == torch.float16:
        return F.linear(x, _scaled(weight, scale, x.dtype))
    return (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)


def _scaled(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * scale[:, None]).to(dtype)


class _Int8Product(torch.autograd.Function):
    """``_int8_product`` with a gradient for x; the float weight is made anew for it, so only its 8-bit form is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return _int8_product(x, weight, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        if gradient.dtype == torch.float16:
            return gradient @ _scaled(weight, scale, gradient.dtype), None, None
        return (gradient * scale).to(gradient.dtype) @ weight.to(gradient.dtype), None, None
