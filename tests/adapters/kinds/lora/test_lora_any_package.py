"""Whatever a LoRA package holds, it is compiled or refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.compiling import compile_package
from adapters.kinds.registry import parse_config
from adapters.package.reading import AdapterPackage
from tests.adapters.support import SMALL_SPEC, refusal

LAYER = "model.layers.0.mlp.experts"
SPEC = replace(
    SMALL_SPEC,
    experts={f"{LAYER}.gate_up_proj": (3, 16, 8), f"{LAYER}.down_proj": (3, 4, 16)},
    routers={"model.layers.0.mlp.gate": (3, 16)},
    parameters={"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16)},
    embedding="model.embed_tokens",
    head="lm_head",
    weight=lambda name: torch.ones(3 if "gate" in name else 8 if "attn" in name else 32, 16),
)
MODULES = [
    "model.layers.0.attn.q_proj", f"{LAYER}.1.gate_proj", f"{LAYER}.2.up_proj", f"{LAYER}.0.down_proj", f"{LAYER}.9.w1",
    "model.layers.0.block_sparse_moe.experts.0.w1", "model.layers.1.moe.experts.0.w2", "x.experts.0.w1", LAYER,
    f"{LAYER}.base_layer", "model.layers.0.mlp.gate", "model.layers.0.moe.gate", "model.embed_tokens", "lm_head", "",
]  # fmt: skip
PARAMETERS = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "weight", "bias"]
sizes = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 32])
tensors = st.dictionaries(
    st.tuples(st.sampled_from(MODULES), st.sampled_from(PARAMETERS)),
    st.lists(sizes, max_size=3),
    min_size=1,
    max_size=6,
)
pairs = st.dictionaries(st.sampled_from(MODULES[:-1]), st.tuples(sizes, sizes, sizes, sizes), max_size=3)
configs = st.fixed_dictionaries(
    {
        "r": st.sampled_from([1, 2, 4]),
        "target_modules": st.sampled_from([None, "all-linear", ["q_proj"], [*"ab"], ".*"]),
    },
    optional={
        "target_parameters": st.sampled_from([["gate_up_proj", "down_proj"], ["down_proj"], ["gate.weight"], [""]]),
        "peft_version": st.sampled_from(["0.17.1", "0.21.0", "x", ""]),
        "rank_pattern": st.sampled_from([{"gate_proj": 2}, {"(": 2}, {".*experts.*": 1}]),
        "alpha_pattern": st.sampled_from([{"gate_proj": 2}, {".*1.*": 1e308}]),
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "bias": st.sampled_from(["all", "lora_only"]),
        "layers_to_transform": st.sampled_from([0, [1], [-1]]),
    },
)


@settings(max_examples=300, deadline=None)
@given(config=configs, loose=tensors, fitting=pairs)
def test_any_package_is_compiled_or_refused(config: dict[str, Any], loose: Any, fitting: Any) -> None:
    found = {
        f"base_model.model.{module}.{parameter}": torch.ones(shape) for (module, parameter), shape in loose.items()
    }
    for module, (a, b, c, d) in fitting.items():
        found[f"base_model.model.{module}.lora_A.weight"] = torch.ones(a, b)
        found[f"base_model.model.{module}.lora_B.weight"] = torch.ones(c, d)

    def compile_it() -> object:
        parsed = parse_config({"peft_type": "LORA", "lora_alpha": 2, **config})
        package = AdapterPackage(path=Path(), config=parsed, tensors=found, manifest=None, digest="", nbytes=0)
        return compile_package(package, SPEC)

    assert refusal(compile_it).isprintable()
