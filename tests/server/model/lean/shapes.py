"""Tiny decoders that differ in every fact a plan has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bases.loader import load_model
from server.model.attention import NAME
from tests.factory import make_base

WINDOW = 6
LOCAL_AND_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
THETA = {"rope_theta": 1e4}
NO_DIM = {"head_dim": None}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# name: architecture, configuration
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4}),
    "llama, one KV head": ("llama", {"num_key_value_heads": 1, "hidden_act": "relu2"}),
    "llama, heads that do not join": ("llama", {"head_dim": 12}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **THETA}}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, **THETA}},
    ),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **THETA}}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **LOCAL_AND_GLOBAL}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 9, **LOCAL_AND_GLOBAL}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "phi": ("phi", NO_DIM),
    "phi, norms of heads": ("phi", {"qk_layernorm": True, **NO_DIM}),
    "phi3": ("phi3", {"sliding_window": WINDOW, **NO_DIM}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "logits_scaling": 8.0,
        },
    ),
    "cohere": ("cohere", {}),
    "cohere, norms of heads": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", LOCAL_AND_GLOBAL),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", LOCAL_AND_GLOBAL),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "seed_oss": ("seed_oss", {}),
    "exaone4": ("exaone4", LOCAL_AND_GLOBAL),
    "ernie4_5": ("ernie4_5", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "stablelm": ("stablelm", {}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "mixtral": ("mixtral", EXPERTS),
    "gpt_oss": ("gpt_oss", {"sliding_window": WINDOW, **EXPERTS}),
}


def make_shape(name: str, path: Path) -> Path:
    """A base of that shape, none of whose numbers is at the value that would hide it."""
    model_type, config = SHAPES[name]
    make_base(path, model_type=model_type, **config)
    model = AutoModelForCausalLM.from_pretrained(path)
    torch.manual_seed(5)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name and parameter_name.endswith("weight"):
            parameter.data.add_(torch.rand_like(parameter) - 0.5)
    model.save_pretrained(path)
    return path


def load(base: Path) -> Any:
    """The model as the server loads it."""
    return load_model(base, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=NAME).eval()
