"""Architectures whose attention does not go through transformers' AttentionInterface, brought onto the paged cache.

One file per family; each binds the family's attention modules to ``server.model.attention.attend``. Nothing else of
the model changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from server.model.attention import NAME
from server.model.families import bloom, falcon, gpt_neo, gptj, mpt

PATCHES: Mapping[str, Callable[[PreTrainedModel], None]] = {
    "bloom": bloom.patch,
    "codegen": gptj.patch,
    "falcon": falcon.patch,
    "gpt_neo": gpt_neo.patch,
    "gptj": gptj.patch,
    "mpt": mpt.patch,
}

# Held against transformers and peft by tests/server/model/families.
TESTED = frozenset({
    "bloom", "codegen", "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "hunyuan_v1_dense", "llama", "mistral", "mixtral", "mpt", "olmo2", "olmoe", "opt", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
})  # fmt: skip


def prepare_loading(hf_config: Any) -> str:
    """The attention implementation to load the model of ``hf_config`` with; makes its architecture ready for that."""
    if hf_config.model_type == "falcon":
        falcon.use_plain_linears()
    return "eager" if hf_config.model_type in PATCHES else NAME


def patch_attention(model: PreTrainedModel) -> None:
    """Bring a model that was loaded so onto the paged cache, where its architecture needs it."""
    patch = PATCHES.get(model.config.model_type)
    if patch is not None:
        patch(model)
