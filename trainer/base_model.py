"""Loads the base model that adapters are trained on, quantized or not. Knows nothing of adapters or data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from bases.errors import BaseModelError
from bases.finding import resolve_base
from bases.fingerprint import base_fingerprint
from trainer.added_tokens import TrainedToken, add_tokens
from trainer.config.methods import trains_weights
from trainer.config.schema import DIVIDED, TrainConfig
from trainer.errors import first_line
from trainer.int8 import use_weight_only_int8
from trainer.memory import is_out_of_memory


@dataclass(frozen=True, eq=False)
class Base:
    """A loaded base. ``end_ids`` are the tokens that end a turn, the tokenizer's own first.

    ``tokens`` are those whose embeddings are trained, by id; the tokenizer has them, the model's tables may not.
    """

    name: str
    path: Path
    fingerprint: str
    model: Any
    tokenizer: Any
    end_ids: tuple[int, ...]
    pad_id: int
    dtype: torch.dtype
    tokens: tuple[TrainedToken, ...] = ()


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer in ``path``. Raises BaseModelError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"the tokenizer in {path} cannot be read") from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"the tokenizer in {path} has no fast version (tokenizer.json); convert it first")
    return tokenizer


def load_base(config: TrainConfig) -> Base:
    """Load the base that ``config`` names. Raises BaseModelError saying what to do, ConfigError for added tokens."""
    path = resolve_base(config.base)
    fingerprint = base_fingerprint(path)
    tokenizer = load_tokenizer(path)
    tokens = add_tokens(tokenizer, config.added_tokens or ())
    wanted = "float32" if trains_weights(config.method) else config.training.dtype
    dtype = resolve_dtype(wanted, device())
    where = torch.device("cpu") if config.training.strategy in DIVIDED else device()  # divided before it is moved
    model = load_model(path, dtype, config.training.quantize, where)
    end_ids = _end_ids(getattr(model, "generation_config", None), tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0]
    name = path.name if Path(config.base).is_absolute() else config.base  # packages name no folders of this machine
    return Base(name, path, fingerprint, model, tokenizer, end_ids, pad_id, dtype, tokens)


def load_vocabulary(config: TrainConfig) -> tuple[Any, tuple[int, ...]]:
    """Tokenizer and ``end_ids`` of the base that ``config`` names, as load_base gives them; loads no weights."""
    path = resolve_base(config.base)
    tokenizer = load_tokenizer(path)
    add_tokens(tokenizer, config.added_tokens or ())
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:  # a base without that file: transformers reads its own configuration instead
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(path))
    return tokenizer, _end_ids(generation, tokenizer)


def load_model(path: Path, dtype: torch.dtype, quantize: str, on: torch.device | None = None) -> Any:
    """The causal language model in ``path``, frozen, on the device that trains or ``on``. Raises BaseModelError."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            **_quantization(quantize, dtype),
            device_map={"": on or device()},
            trust_remote_code=False,  # None would ask on stdin
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            smaller = "" if quantize == "nf4" else f"quantize=nf4 (now {quantize}) where the method allows it, or "
            raise BaseModelError(f"out of memory while {path} was loaded: take {smaller}a smaller base") from error
        raise BaseModelError(f"the base model in {path} cannot be loaded: {first_line(error)}") from error
    use_weight_only_int8(model)  # a checkpoint can be quantized too
    compute_in(model, dtype)
    keep_trainable(model)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def compute_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Have 4-bit layers compute in ``dtype``: a quantized checkpoint brings the type that it was saved with."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True


def keep_trainable(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference.

    On CPUs with AVX512-BF16 it does so at the first forward in eval mode, after which backward gives no gradient:
    training would stop learning at its first evaluation, with no more than a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (torch types attributes as tensors)


def device() -> torch.device:
    """The device on which this process trains: the CUDA device of its number, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def local_rank() -> int:
    """The number of this process among those that train together on this machine, as torchrun says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def resolve_dtype(name: str, on: torch.device) -> torch.dtype:
    """The dtype meant by ``name``; ``auto`` is bfloat16 only where the hardware multiplies it natively.

    Elsewhere bfloat16 is emulated: measured five times slower than float32 on an AVX-512 CPU without AVX512-BF16.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    # not mkldnn's own answer: it says yes wherever it can emulate
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _quantization(quantize: str, dtype: torch.dtype) -> dict[str, BitsAndBytesConfig]:
    """An argument of from_pretrained, or none: None itself would undo the quantization that a checkpoint has."""
    if quantize == "none":
        return {}
    if quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize.removesuffix("-dq"),
        bnb_4bit_use_double_quant=quantize.endswith("-dq"),
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def _end_ids(generation: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends a turn for the tokenizer and for ``generation``, the model's settings for it."""
    listed = getattr(generation, "eos_token_id", None)
    more: Sequence[int] = listed if isinstance(listed, list) else [] if listed is None else [listed]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = tuple(dict.fromkeys([*own, *more]))
    if not ids:
        raise BaseModelError("the base says no end-of-text token (eos_token), so answers could never end")
    return ids
