"""Refuses, before anything is loaded, bases that cannot be served, and says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from server.errors import EngineStartError

ENCODER_DECODERS = ("t5", "mt5")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_SENSES = re.compile("vision|image|video|vq|audio|speech|codec")
_STATEFUL = (nn.Conv1d, nn.Conv2d, nn.RNNBase)


def check_code(path: Path, trust_remote_code: bool) -> None:
    """EngineStartError for a base that needs code of its own without ``trust_remote_code``, or that nobody knows.

    transformers would ask on stdin, or name classes that say nothing to an operator.
    """
    raw, _ = PretrainedConfig.get_config_dict(path)
    model_type = raw.get("model_type")
    if model_type is None or model_type in CONFIG_MAPPING:
        return
    if not raw.get("auto_map"):
        raise EngineStartError(
            f"the base model in {path} is of the architecture {model_type}, which this version of transformers does "
            "not know; update transformers, or serve another base"
        )
    if not trust_remote_code:
        raise EngineStartError(
            f"the base model in {path} is of the architecture {model_type}, which comes as code beside its weights; "
            "read that code, and if you trust it, start with --trust-remote-code"
        )


def check_architecture(hf_config: Any) -> None:
    """EngineStartError for architectures that are no plain decoder of text, nor a served encoder-decoder."""
    model_type = hf_config.model_type
    if model_type in ENCODER_DECODERS:
        return
    if getattr(hf_config, "is_encoder_decoder", False):
        raise EngineStartError(
            f"{model_type} is an encoder-decoder model of a family that is not served; served are "
            f"{', '.join(ENCODER_DECODERS)}"
        )
    senses = [name.removesuffix("_config") for name in hf_config.sub_configs if _SENSES.search(name)]
    if senses:
        raise EngineStartError(
            f"{model_type} is a model of more than text ({', '.join(senses)}), which is not served; serve a text model "
            "of the same family"
        )
    is_known = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not is_known and "AutoModelForCausalLM" not in (getattr(hf_config, "auto_map", None) or {}):
        raise EngineStartError(f"{model_type} is no language model that writes text; serve a causal language model")


def problem_with_layers(model: PreTrainedModel) -> str | None:
    """Why a model that no test has seen cannot be served, as far as its layers tell without running it."""
    for name, module in model.named_modules():
        if isinstance(module, _STATEFUL):
            return f"the layer {name} ({type(module).__name__}) carries state from token to token"
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    if unknown := sorted(set(types) - set(_LAYER_TYPES)):
        return f"it has layers of the type {unknown[0]}; served are {' and '.join(_LAYER_TYPES)}"
    windows = {getattr(m, "layer_idx", None) for m in model.modules() if getattr(m, "sliding_window", None)}
    for layer, kind in enumerate(types):
        if kind == "sliding_attention" and layer not in windows:
            return f"layer {layer} attends within a window, which it does not tell the attention function"
    return None
