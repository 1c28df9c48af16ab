"""Kinds that train a vector for each module."""

from __future__ import annotations

import torch
from peft import IA3Config, LNTuningConfig
from peft.tuners.beft import BeftConfig
from torch.nn import Parameter

from tests.kinds.case import Case

CLM = "CAUSAL_LM"


def around_one(name: str, parameter: Parameter) -> None:
    """Gains that stay gains."""
    torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)


CASES: dict[str, Case] = {
    "ia3": Case(
        lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type=CLM
        ),
        fill=around_one,
    ),
    "ia3-regex": Case(
        lambda: IA3Config(
            target_modules=r".*\.(q_proj|up_proj|o_proj)", feedforward_modules=r".*\.1\..*_proj", task_type=CLM
        ),
        fill=around_one,
    ),
    "ia3-attention": Case(
        lambda: IA3Config(target_modules=["q_proj", "v_proj"], feedforward_modules=[], task_type=CLM), fill=around_one
    ),
    "ln-tuning": Case(lambda: LNTuningConfig(task_type=CLM), fill=around_one),
    "ln-tuning-some": Case(
        lambda: LNTuningConfig(target_modules=["1.input_layernorm", "model.norm", "gate_proj"], task_type=CLM),
        fill=lambda name, p: torch.nn.init.normal_(p, std=0.1) if "gate" in name else around_one(name, p),
    ),
    "beft": Case(lambda: BeftConfig(target_modules=["v_proj", "gate_proj"], task_type=CLM)),
}
