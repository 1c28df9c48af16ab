"""Loads the weights of a base with transformers, quantized as asked and ready to compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bases.quantization import prepare_quantized


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    auto_class: Any = AutoModelForCausalLM,
    trust_remote_code: bool = False,  # None would ask on stdin
    for_training: bool = False,
    **options: Any,
) -> Any:
    """The model in ``path`` on ``device``; what transformers raises is passed on.

    ``quantization`` None leaves the weights as they were saved. ``options`` are from_pretrained's own.
    """
    if quantization is not None:  # given as None it would undo the quantization that a checkpoint has
        options["quantization_config"] = quantization
    model = auto_class.from_pretrained(
        path,
        dtype=dtype,
        device_map={"": device},
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        **options,
    )
    prepare_quantized(model, dtype, for_training=for_training)
    return model
