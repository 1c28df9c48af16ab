"""Loads the base model to be served: refuses what cannot be, quantizes, and puts attention onto the paged cache."""

from __future__ import annotations

from pathlib import Path

from bases.architecture import ENCODER_DECODERS, read_config
from bases.compute import resolve_device, serving_dtype
from bases.end_tokens import end_token_ids
from bases.errors import BaseModelError, QuantizationError, UntrustedCodeError
from bases.fingerprint import base_fingerprint, template_sha256
from bases.loader import load_model
from bases.model import LoadedBase
from bases.quantization import choose_quantization
from bases.tokenizer import find_tokenizer
from hotkernels.native import KernelError
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.architecture_check import check_architecture
from server.model.families import patch_attention, prepare_loading


def load_base(config: EngineConfig) -> LoadedBase:
    """Load ``config.model``. Raises EngineStartError in plain words when it cannot be served."""
    try:
        base = _load(config)
    except (QuantizationError, UntrustedCodeError, KernelError) as error:
        raise EngineStartError(str(error)) from error
    except (BaseModelError, OSError, ValueError, KeyError) as error:
        raise EngineStartError(f"cannot load the base model in {config.model}: {error}") from error
    limit = base.max_positions
    is_bounded = base.model.config.model_type not in ENCODER_DECODERS  # T5's positions are relative
    if is_bounded and config.max_model_len > limit:
        raise EngineStartError(f"--max-model-len {config.max_model_len} exceeds the base's {limit} positions")
    return base


def _load(config: EngineConfig) -> LoadedBase:
    path = Path(config.model)
    device = resolve_device(config.device)
    dtype = serving_dtype(config.dtype, device)
    fingerprint = base_fingerprint(path)
    hf_config = read_config(path, config.trust_remote_code)
    check_architecture(hf_config)
    kept, to_make = choose_quantization(config.quantize, hf_config, path)
    model = load_model(
        path,
        dtype=dtype,
        device=device,
        quantize=to_make,
        trust_remote_code=config.trust_remote_code,
        config=hf_config,
        attn_implementation=prepare_loading(hf_config),
    )
    patch_attention(model)
    template, end_ids = _text_facts(config)
    return LoadedBase(
        model=model.eval().requires_grad_(False),
        quantization=kept,
        dtype=dtype,
        device=device,
        fingerprint=fingerprint,
        end_ids=end_ids,
        chat_template_sha256=template,
    )


def _text_facts(config: EngineConfig) -> tuple[str | None, tuple[int, ...]]:
    """Hash of the chat template, and what ends an output: as told by who renders prompts, or as the base's files say.

    An engine without a server around it is told neither.
    """
    template, end_ids = config.chat_template_sha256, config.end_token_ids
    if template and end_ids:
        return template, end_ids
    tokenizer = find_tokenizer(Path(config.model), config.trust_remote_code)
    own = getattr(tokenizer, "chat_template", None)
    template = template or (template_sha256(own) if isinstance(own, str) else "")
    return template or None, end_ids or end_token_ids(Path(config.model), tokenizer)
