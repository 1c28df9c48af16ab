"""Every training method with settings under which the tiny base learns the colours in a few steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

ALL = "target_modules=[q_proj, v_proj, down_proj]"
METHODS: dict[str, list[str]] = {
    "lora": ["method=lora", "r=4", "bias=lora_only", "learning_rate=1e-2"],
    "rslora": ["method=lora", "r=4", "use_rslora=true", "learning_rate=1e-2"],
    "dora": ["method=lora", "r=4", "use_dora=true", "learning_rate=1e-2"],
    "lora-saved": ["method=lora", "r=4", "modules_to_save=[lm_head, model.norm]", "learning_rate=1e-2"],
    "adalora": ["method=adalora", "init_r=6", "target_r=3", "dropout=0.1", "delta_t=3", "learning_rate=5e-2"],
    "vera": ["method=vera", "r=16", ALL, "learning_rate=1e-1"],
    "loha": ["method=loha", "r=4", ALL, "learning_rate=3e-2"],
    "lokr": ["method=lokr", "r=4", ALL, "learning_rate=3e-2"],
    "ia3": ["method=ia3", "learning_rate=2e-1"],
    "oft": ["method=oft", "block_size=16", ALL, "learning_rate=3e-2"],
    "boft": ["method=boft", "block_size=4", ALL, "learning_rate=5e-2"],
    "hra": ["method=hra", "r=4", ALL, "learning_rate=5e-2"],
    "miss": ["method=miss", "r=4", ALL, "learning_rate=1e-2"],
    "ln_tuning": ["method=ln_tuning", "learning_rate=5e-2"],
    "bottleneck": ["method=bottleneck", "bottleneck_size=8", "learning_rate=1e-2"],
    "pfeiffer": ["method=bottleneck", "layout=pfeiffer", "bottleneck_size=8", "learning_rate=1e-2"],
    "freeze": ["method=freeze", "layers=1", "learning_rate=3e-3"],
    "freeze-norm": ["method=freeze", "layers=0", "method.modules=[model.norm]", "learning_rate=1e-1"],
    "prefix": ["method=prefix", "tokens=4", "projection_hidden_size=32", "learning_rate=3e-2"],
    "prefix-plain": ["method=prefix", "tokens=4", "projection=false", "learning_rate=2e-1"],
    "prompt": ["method=prompt", "tokens=4", "learning_rate=1e-1"],
    "p_tuning": ["method=p_tuning", "tokens=4", "hidden_size=32", "learning_rate=3e-2"],
    "p_tuning-lstm": ["method=p_tuning", "tokens=4", "encoder=lstm", "hidden_size=32", "learning_rate=3e-2"],
}
# What stands before the prompt, or is very small, can say less to a random model.
WEAK = {"prompt", "p_tuning", "p_tuning-lstm", "freeze-norm", "ia3", "ln_tuning"}
# One of each way in which a method stands in the model, is written to checkpoints and is exported.
MECHANISMS = ("lora", "dora", "adalora", "vera", "oft", "freeze", "bottleneck", "prefix", "p_tuning-lstm")


def others_slow(names: Iterable[str]) -> list[Any]:
    """``names`` as parameters, of which those that work as one of ``MECHANISMS`` does are left to the slow tests."""
    return [name if name in MECHANISMS else pytest.param(name, marks=pytest.mark.slow) for name in names]
