"""How the base's weights are kept: quantized by us at load, or as a checkpoint was saved.

bitsandbytes' own INT8 product also rounds the activations, to 1/127 of their row's largest. Inputs that differ in the
last bit then move by whole steps, layer after layer: on SmolLM2-135M the logits of one sequence differ by up to 3.5
between a full and an incremental forward pass of the same library. A batch must not change its rows, so only the
weights are kept in 8 bits here. It does not know how weights are read back (``bases.weights``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from bases.errors import QuantizationError


def use_weight_only_int8(model: nn.Module) -> None:
    """Let every Linear8bitLt of a freshly loaded ``model`` compute ``(x @ CB.T) * (SCB / 127) + bias``.

    In fp16 the product could exceed what the type holds, so the weight is scaled first.

    Shape: ``CB`` [out, in] int8; ``SCB`` [out], the largest magnitude of each weight row. The module then holds
    nothing but these.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            _bind_int8(module)


def _bind_int8(module: Linear8bitLt) -> None:
    weight: Tensor = module.weight.data
    scale: Tensor = module.weight.SCB / 127
    bias: Tensor | None = module.bias

    def forward(x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)
        y = (F.linear(x, weight.to(x.dtype)) * scale).to(x.dtype)
        return y if bias is None else y + bias

    module.forward = forward


DEFAULT = "nf4"
_DOUBLE = "-dq"
_PACKED_ROWS = 32  # output features side by side in bitsandbytes' layout for AVX512-BF16


def choose_quantization(asked: str, hf_config: Any) -> tuple[str, BitsAndBytesConfig | None]:
    """How to keep the weights, by name, and what to tell transformers about it (None: nothing to quantize).

    ``asked`` is ``--quantize``. Raises QuantizationError when the checkpoint is already quantized in another way, or in
    one that is not served.
    """
    saved = _saved_quantization(hf_config)
    if saved is None:
        name = DEFAULT if asked == "auto" else asked
        return name, _bitsandbytes(name)
    if asked not in ("auto", saved):
        raise QuantizationError(
            f"the checkpoint is quantized already, to {saved}: leave --quantize out or give --quantize {saved}, "
            f"not {asked}"
        )
    return saved, None


def _saved_quantization(hf_config: Any) -> str | None:
    """The name for what a checkpoint's config.json says about its weights; None for plain ones."""
    found = getattr(hf_config, "quantization_config", None)
    if found is None:
        return None
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    if fields.get("load_in_4bit"):
        kind = str(fields.get("bnb_4bit_quant_type", "fp4"))
        return kind + _DOUBLE if fields.get("bnb_4bit_use_double_quant") else kind
    if fields.get("load_in_8bit") and not fields.get("llm_int8_has_fp16_weight"):
        return "int8"
    method = fields.get("quant_method", "an unknown method")
    raise QuantizationError(
        f"the checkpoint is quantized with {method}; of quantized checkpoints only those of bitsandbytes in 4 and 8 "
        "bits are served. Take the unquantized checkpoint and --quantize it"
    )


def _bitsandbytes(name: str) -> BitsAndBytesConfig | None:
    if name == "none":
        return None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name.removesuffix(_DOUBLE),
        bnb_4bit_use_double_quant=name.endswith(_DOUBLE),
    )


def prepare_quantized(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the quantized layers of a freshly loaded ``model`` compute in ``dtype``, whatever its checkpoint says."""
    use_weight_only_int8(model)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
            if module.support_avx512bf16_for_cpu:
                module.support_avx512bf16_for_cpu = _fits_bf16_kernel(module, dtype)


def _fits_bf16_kernel(module: Linear4bit, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes may repack the weight for its fused kernel on CPUs with AVX512-BF16.

    Left alone it does so for every layer: shapes that the layout does not fit then fail an assertion, and the kernel
    computes in bf16 even when the inputs are fp32.
    """
    rows, columns = module.out_features, module.in_features
    return dtype == torch.bfloat16 and rows % _PACKED_ROWS == 0 and columns % module.weight.blocksize == 0
