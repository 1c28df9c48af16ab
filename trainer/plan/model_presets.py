"""Bases known by name, as transformers configurations: their models are built without weights, on the meta device.

Counts are of the real architectures. ChatGLM-6B has GPT-NeoX's layers with one matrix for embedding and head; ChatGLM2
is transformers' GLM; Yuan2 is a llama with two convolutions before the queries and keys of every layer, which are
counted and not computed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError


@dataclass(frozen=True)
class ModelPreset:
    """A base by its sizes. ``rows`` are the methods worth comparing on it, each a label and ``key=value`` settings.

    ``parameters`` is the published count, which tests hold the built model to. ``amend`` adds what the configuration
    has no word for.
    """

    name: str
    model_type: str
    settings: dict[str, Any]
    parameters: int
    rows: tuple[tuple[str, str], ...]
    summary: str
    amend: Callable[[Any], None] | None = None

    def config(self) -> Any:
        """transformers' configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **self.settings)


def model_preset(name: str) -> ModelPreset:
    """The shape called ``name``. Raises ConfigError naming the nearest one."""
    if name in MODEL_PRESETS:
        return MODEL_PRESETS[name]
    near = difflib.get_close_matches(name, MODEL_PRESETS, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(MODEL_PRESETS)}"
    raise ConfigError(f"--shape: {name!r} is not a known shape; {hint} For any other base give a configuration file")


def _add_localized_filtering(model: Any) -> None:
    """Yuan2's LocalizedFiltering in every layer: two convolutions over two tokens each, and a norm."""
    from torch import nn

    size = int(model.config.hidden_size)
    for layer in model.model.layers:
        layer.self_attn.lf_gate = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(size, size // 2, (2, 1), dtype=model.dtype, device="meta"),
                "conv2": nn.Conv2d(size // 2, size, (2, 1), dtype=model.dtype, device="meta"),
                "output_layernorm": nn.RMSNorm(size, dtype=model.dtype, device="meta"),
            }
        ).requires_grad_(False)


def _rows(attention: str, *, norms: str = "", ia3: str = "") -> tuple[tuple[str, str], ...]:
    """The methods of every shape, for the names of its modules."""
    return (
        ("LoRA r=8, all linear maps", "method=lora r=8"),
        (f"LoRA r=8, {attention}", f"method=lora r=8 target_modules=[{attention}]"),
        ("DoRA r=8, all linear maps", "method=lora r=8 use_dora=true"),
        ("IA3", f"method=ia3 {ia3}".strip()),
        ("prefix 16", "method=prefix tokens=16 projection=false"),
        ("prefix 16 with projection", "method=prefix tokens=16"),
        ("prompt tuning 16", "method=prompt tokens=16"),
        ("P-Tuning v1, 16", "method=p_tuning tokens=16"),
        ("bottleneck (Houlsby) 48", "method=bottleneck"),
        ("norms", f"method=ln_tuning {norms}".strip()),
        ("Freeze, last five layers", "method=freeze layers=5"),
        ("full", "method=full"),
    )


_NEOX_NORMS = "target_modules=[input_layernorm,post_attention_layernorm,final_layer_norm]"
_GLM_NORMS = "target_modules=[input_layernorm,post_attention_layernorm,norm]"
_GLM_IA3 = "target_modules=[k_proj,v_proj,down_proj] feedforward_modules=[down_proj]"


def _llama(*sizes: int, **more: Any) -> dict[str, Any]:
    """Vocabulary, hidden, inner, layers, heads, groups of keys and values."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **dict(zip((*names, "num_key_value_heads"), sizes, strict=True)),
        "tie_word_embeddings": False,
        **more,
    }


_ALL = (
    ModelPreset(
        "chatglm-6b",
        "gpt_neox",
        {
            "vocab_size": 150528,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_hidden_layers": 28,
            "num_attention_heads": 32,
            "tie_word_embeddings": True,
            "use_parallel_residual": False,
        },
        6_255_206_400,
        (
            *_rows("query_key_value", norms=_NEOX_NORMS),
            ("P-Tuning v2 16, projection of 4096", "method=prefix tokens=16 projection_hidden_size=4096"),
        ),
        "ChatGLM-6B: GPT-NeoX's layers, embedding and head in one matrix",
    ),
    ModelPreset(
        "chatglm2-6b",
        "glm",
        _llama(65024, 4096, 13696, 28, 32, 2, head_dim=128, attention_bias=True, pad_token_id=0),
        6_243_584_000,
        (
            *_rows("q_proj,k_proj,v_proj", norms=_GLM_NORMS, ia3=_GLM_IA3),
            ("prefix 128", "method=prefix tokens=128 projection=false"),
            ("prefix 136", "method=prefix tokens=136 projection=false"),
        ),
        "ChatGLM2-6B: two groups of keys and values",
    ),
    ModelPreset(
        "yuan2-2b",
        "llama",
        _llama(135040, 2048, 8192, 24, 32, 32, tie_word_embeddings=True, pad_token_id=77185),
        2_088_724_480,
        _rows("q_proj,k_proj,v_proj"),
        "Yuan2-2B: a llama with filtered queries and keys; the filters' activations are left out",
        _add_localized_filtering,
    ),
    ModelPreset(
        "smollm2-135m",
        "llama",
        _llama(49152, 576, 1536, 30, 9, 3, tie_word_embeddings=True),
        134_515_008,
        _rows("q_proj,v_proj"),
        "SmolLM2-135M",
    ),
    ModelPreset(
        "llama-3.2-1b",
        "llama",
        _llama(128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
        _rows("q_proj,v_proj"),
        "Llama 3.2 1B",
    ),
    ModelPreset(
        "llama-3-8b",
        "llama",
        _llama(128256, 4096, 14336, 32, 32, 8),
        8_030_261_248,
        _rows("q_proj,v_proj"),
        "Llama 3 and 3.1 8B",
    ),
    ModelPreset(
        "mistral-7b",
        "mistral",
        _llama(32768, 4096, 14336, 32, 32, 8),
        7_248_023_552,
        _rows("q_proj,v_proj"),
        "Mistral 7B v0.3",
    ),
    ModelPreset(
        "qwen2.5-0.5b",
        "qwen2",
        _llama(151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
        494_032_768,
        _rows("q_proj,v_proj"),
        "Qwen2.5 0.5B",
    ),
    ModelPreset(
        "qwen2.5-7b",
        "qwen2",
        _llama(152064, 3584, 18944, 28, 28, 4),
        7_615_616_512,
        _rows("q_proj,v_proj"),
        "Qwen2.5 7B",
    ),
    ModelPreset(
        "qwen3-8b",
        "qwen3",
        _llama(151936, 4096, 12288, 36, 32, 8, head_dim=128),
        8_190_735_360,
        _rows("q_proj,v_proj", norms="target_modules=[input_layernorm,post_attention_layernorm,norm]"),
        "Qwen3 8B",
    ),
)
MODEL_PRESETS: dict[str, ModelPreset] = {shape.name: shape for shape in _ALL}
