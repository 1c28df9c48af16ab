"""What several test folders share: one tiny base and adapters of every served kind, saved by peft itself."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tests.factory import make_adapter, make_base

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with biases, in fp32."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny", attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of every served kind for ``tiny_base``, by name."""
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

    attention, everything = ["q_proj", "v_proj"], "all-linear"
    configs = {
        "lora-r4": LoraConfig(r=4, lora_alpha=8, target_modules=everything, task_type="CAUSAL_LM"),
        "lora-r8": LoraConfig(r=8, lora_alpha=8, target_modules=everything, task_type="CAUSAL_LM"),
        "lora-r8-attention": LoraConfig(r=8, lora_alpha=16, target_modules=attention, task_type="CAUSAL_LM"),
        "rslora-r16": LoraConfig(
            r=16, lora_alpha=8, use_rslora=True, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM"
        ),
        "lora-patterns": LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=attention,
            rank_pattern={"layers.1.self_attn.q_proj": 6},
            alpha_pattern={"v_proj": 32},
            task_type="CAUSAL_LM",
        ),
        "lora-bias": LoraConfig(r=4, target_modules=attention, bias="lora_only", task_type="CAUSAL_LM"),
        "lora-bias-all": LoraConfig(r=4, target_modules=attention, bias="all", task_type="CAUSAL_LM"),
        "prefix-16": PrefixTuningConfig(num_virtual_tokens=16, task_type="CAUSAL_LM"),
        "prefix-21": PrefixTuningConfig(num_virtual_tokens=21, task_type="CAUSAL_LM"),
        "prefix-5": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "prompt-7": PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        "prompt-20": PromptTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    }
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(tiny_base, root / name, config, seed=i, std=0.3 if name.startswith("pr") else 0.1)
        for i, (name, config) in enumerate(configs.items())
    }
