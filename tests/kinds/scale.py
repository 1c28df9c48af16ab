"""Kinds that train a vector for each module."""

from __future__ import annotations

import torch
from peft import IA3Config, LNTuningConfig
from peft.tuners.beft import BeftConfig
from peft.tuners.supertuning import SupertuningConfig
from torch.nn import Parameter

from tests.kinds.case import Case

CLM = "CAUSAL_LM"


def around_one(name: str, parameter: Parameter) -> None:
    """Gains that stay gains."""
    torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)


def whole_modules(name: str, parameter: Parameter) -> None:
    """Norms around one, linear maps around zero."""
    if "gate_proj" in name:
        torch.nn.init.normal_(parameter, std=0.1)
    else:
        around_one(name, parameter)


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
        fill=whole_modules,
    ),
    "supertuning": Case(
        lambda: SupertuningConfig(target_modules=["v_proj", "down_proj"], sparsity=0.95, task_type=CLM)
    ),
    "supertuning-low-rank": Case(
        lambda: SupertuningConfig(target_modules=["q_proj"], sparsity=0.2, select_top=False, r=3, task_type=CLM)
    ),
    "beft": Case(lambda: BeftConfig(target_modules=["v_proj", "gate_proj"], task_type=CLM)),
}
