"""Loads the base model to be served: refuses what cannot be, quantizes, and puts attention onto the paged cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, PreTrainedModel

from bases.compute import resolve_device, resolve_dtype
from bases.end_tokens import end_token_ids
from bases.errors import BaseModelError, QuantizationError
from bases.fingerprint import base_fingerprint
from bases.model import LoadedBase
from bases.quantization import choose_quantization, prepare_quantized
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.architecture_check import ENCODER_DECODERS, check_architecture, check_code
from server.model.families import patch_attention, prepare_loading

logger = logging.getLogger(__name__)


def load_base(config: EngineConfig) -> LoadedBase:
    """Load ``config.model``. Raises EngineStartError in plain words when it cannot be served."""
    path = Path(config.model)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    try:
        fingerprint = base_fingerprint(path)
        check_code(path, config.trust_remote_code)
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        check_architecture(hf_config)
        quantization, options = choose_quantization(config.quantize, hf_config)
        model = _load(path, config, hf_config, options, dtype=dtype, device=device)
    except QuantizationError as error:
        raise EngineStartError(str(error)) from error
    except (BaseModelError, OSError, ValueError, KeyError) as error:
        raise EngineStartError(f"cannot load the base model in {path}: {error}") from error
    limit = int(getattr(hf_config, "max_position_embeddings", 0) or 2048)
    if config.max_model_len > limit and hf_config.model_type not in ENCODER_DECODERS:  # T5's positions are relative
        raise EngineStartError(f"--max-model-len {config.max_model_len} exceeds the base's {limit} positions")
    length = config.max_model_len or limit
    return LoadedBase(model, quantization, dtype, device, fingerprint, end_token_ids(model), length)


def _load(
    path: Path,
    config: EngineConfig,
    hf_config: Any,
    quantization: BitsAndBytesConfig | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    options: dict[str, Any] = {"quantization_config": quantization} if quantization is not None else {}
    auto = AutoModelForSeq2SeqLM if hf_config.model_type in ENCODER_DECODERS else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=prepare_loading(hf_config),
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        **options,
    )
    prepare_quantized(model, dtype)
    patch_attention(model)
    return model.eval().requires_grad_(False)
