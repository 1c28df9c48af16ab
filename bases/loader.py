"""Loads the weights of a base with transformers, quantized as asked and ready to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from bases.architecture import has_own_code, model_class, older_code, read_config
from bases.compute import is_out_of_memory, uses_kernels
from bases.errors import BaseModelError
from bases.fingerprint import common_type
from bases.gguf_blocks import StoredBlocks
from bases.packing import pack_model, use_values
from bases.quantization import GGUF_MARK, prepare_quantized, quantization_config


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str = "none",
    trust_remote_code: bool = False,  # None would ask on stdin
    for_training: bool = False,
    **options: Any,
) -> Any:
    """The model in ``path`` on ``device``, computing in ``dtype``; what transformers raises is passed on.

    ``quantize`` is one of QUANTIZATIONS: "none" leaves the weights as they were saved, "gguf" gives them the values of
    the GGUF file that the base is from, and raises QuantizationError where it is from none. They are packed where
    native kernels can compute with them, and otherwise, and ``for_training``, are plain modules' or bitsandbytes'.
    ``options`` are from_pretrained's own.
    """
    packs = uses_kernels(device, dtype) and not for_training
    blocks = StoredBlocks(path) if quantize == "gguf" else {}
    if (quantization := quantization_config(quantize, dtype)) is not None:
        options["quantization_config"] = quantization  # given as None it would undo what a checkpoint has
    loaded = getattr(torch, common_type(path)) if packs else dtype
    config = options.pop("config", None) or read_config(path, trust_remote_code)
    auto_class = model_class(config)
    with _own_code_explained(config, path), older_code(config):
        model = auto_class.from_pretrained(
            path,
            config=config,
            dtype=loaded,
            device_map={"": device},
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **options,
        )
    if packs:
        if loaded != dtype:
            _renew_buffers(model, auto_class, trust_remote_code)
        pack_model(model, blocks)
    else:
        use_values(model, blocks)
    setattr(model, GGUF_MARK, quantize == "gguf")
    prepare_quantized(model, dtype, for_training=for_training)
    return model


@contextmanager
def _own_code_explained(config: Any, path: Path) -> Iterator[None]:
    """What code of a base's own raises as one line: it may be anything, and is often written for another version."""
    try:
        yield
    except Exception as error:
        if not has_own_code(config) or is_out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise BaseModelError(
            f"the code that comes with the base in {path} fails ({why}); it may be written for another version of "
            f"transformers than {version('transformers')}: take a newer one of it"
        ) from error


def _renew_buffers(model: Any, auto_class: Any, trust_remote_code: bool) -> None:
    """Compute what is no weight, such as frequencies of positions, in float32: transformers computed it as it loads."""
    with init_empty_weights(include_buffers=False), older_code(model.config):
        exact = auto_class.from_config(model.config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    for name, module in exact.named_modules():
        for buffer in module._non_persistent_buffers_set:
            if module._buffers[buffer] is not None:
                model.get_submodule(name)._buffers[buffer] = module._buffers[buffer]
