"""The architectures that are held against transformers and peft, and what a tiny model of each is configured with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXPERTS = {"num_experts_per_tok": 2, "norm_topk_prob": True}
FEW_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, **EXPERTS}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, **EXPERTS}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 128}
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
PATCHED = ("bloom", "falcon", "gptj", "codegen", "gpt_neo", "mpt")
FUSED = ("gate_up_proj", "down_proj")
WINDOW = 96  # beyond every sequence here: peft's prefix cache ignores windows; see test_windows.py


@dataclass(frozen=True)
class Family:
    """A tiny model of one architecture. ``config`` overrides ``tests.factory.TINY``; None leaves a setting out.

    ``virtual`` is told to peft of adapters with virtual tokens, ``prefix`` of prefix adapters alone, ``lora`` of LoRA.
    ``attention`` is the transformers implementation to hold against. ``no_prefix`` says why peft cannot run a prefix
    adapter on this architecture, where that is so. ``experts`` are what LoRA of experts targets.
    """

    config: dict[str, Any] = field(default_factory=dict)
    virtual: dict[str, Any] = field(default_factory=dict)
    prefix: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    attention: str = "eager"
    no_prefix: str = ""
    experts: tuple[str, ...] = ()


def model_type_of(name: str) -> str:
    """The architecture of a family: what stands before a comma."""
    return name.partition(",")[0]


FAMILIES: dict[str, Family] = {
    "llama": Family({"attention_bias": True, "mlp_bias": True}),
    "mistral": Family({"sliding_window": WINDOW}),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family({"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3_text": Family({"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "opt": Family({"ffn_dim": 128, "word_embed_proj_dim": 64, **NO_GROUPS}),
    "gpt2": Family({**GPT, **NO_GROUPS}, lora={"fan_in_fan_out": True}),
    "gpt_neox": Family(NO_GROUPS),
    "glm": Family(),
    "glm4": Family(),
    "phi": Family({"head_dim": None}),
    "phi3": Family({"head_dim": None, "sliding_window": WINDOW}),
    "mixtral": Family(LOCAL_EXPERTS, experts=FUSED),
    "qwen2_moe": Family({"shared_expert_intermediate_size": 32, **FEW_EXPERTS}, experts=("down_proj",)),
    "qwen3_moe": Family(FEW_EXPERTS, experts=FUSED),
    "phimoe": Family(
        LOCAL_EXPERTS,
        lora={"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        experts=(*FUSED, "router.weight"),
    ),
    "olmoe": Family({"num_experts": 4, **EXPERTS}, experts=FUSED),
    "gpt_oss": Family(
        {"sliding_window": WINDOW, **LOCAL_EXPERTS},
        experts=("experts.down_proj", "experts.gate_up_proj", "router.weight"),
    ),
    "deepseek_v3": Family(
        {
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "first_k_dense_replace": 1,
            **ROUTED,
        },
        experts=(*FUSED, "self_attn.q_a_proj.weight"),
        no_prefix="keys and values differ in size, which peft's format has no place for",
    ),
    "glm4_moe": Family(ROUTED, experts=(*FUSED, "gate.weight")),
    "granite": Family(),
    "cohere": Family(),
    "cohere2": Family({"sliding_window": WINDOW}),
    "starcoder2": Family({"sliding_window": WINDOW}),
    "olmo2": Family(),
    "smollm3": Family(),
    "gpt_bigcode": Family({**GPT, **NO_GROUPS}),
    "seed_oss": Family(),
    "exaone4": Family({"sliding_window": WINDOW}),
    "ernie4_5": Family(),
    "hunyuan_v1_dense": Family(),
    # patched: server/model/families
    "bloom": Family(NO_GROUPS),
    "bloom, 6 heads": Family({"num_attention_heads": 6, "hidden_size": 96, **NO_GROUPS}),
    "falcon": Family({"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, **NO_GROUPS}),
    "falcon, one KV head": Family(
        {"alibi": False, "multi_query": True, **NO_GROUPS}, prefix={"num_attention_heads": 1, "token_dim": 16}
    ),
    # transformers' eager form adds the bias twice, in the mask and beside it; the default, sdpa, once
    "falcon, ALiBi": Family({"alibi": True, "multi_query": False, **NO_GROUPS}, attention="sdpa"),
    "gptj": Family({"rotary_dim": 8, **GPT, **NO_GROUPS}),
    "codegen": Family({"rotary_dim": 8, **GPT, **NO_GROUPS}),
    "gpt_neo": Family(
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            **NO_GROUPS,
        }
    ),
    "mpt": Family(NO_GROUPS, {"num_attention_heads": 4}),
    "mpt, 6 heads": Family({"num_attention_heads": 6, "hidden_size": 96, **NO_GROUPS}, {"num_attention_heads": 6}),
}
