"""Windows, sinks and capped logits with prompts longer than the window, base and LoRA, against transformers.

No prefix adapters here: peft's prefix cache ignores windows, so their lengths stay inside it in test_families.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bounds import LOGITS
from tests.factory import make_adapter, make_base
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.families.catalog import FAMILIES
from tests.server.model.families.sweep import difference, lora

WINDOW = 8
COUNT = 7
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": WINDOW},
    "gpt_oss": {"sliding_window": WINDOW},
    "cohere2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "starcoder2": {"sliding_window": WINDOW},
    "exaone4": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "gpt_neo": {"window_size": WINDOW},
}


@pytest.mark.parametrize("model_type", WINDOWED)
def test_prompts_longer_than_the_window(model_type: str, tmp_path: Path) -> None:
    config = {**FAMILIES[model_type].config, **WINDOWED[model_type]}
    base = make_base(tmp_path / "base", model_type=model_type, **config)
    assert WINDOW in json.loads((base / "config.json").read_text()).values(), "the setting has another name"
    adapter = make_adapter(base, tmp_path / "lora", lora())
    driver = Driver(base, max_num_batched_tokens=11)
    key = driver.load("lora", adapter)
    rows = {"base": (None, 29), "lora": (key, 23), "short": (key, 3), "base again": (None, 12)}
    for name, (row_key, length) in rows.items():
        driver.submit(name, prompt_of(length, length), row_key, COUNT)
    driver.run()
    for name, (row_key, length) in rows.items():
        far = difference(driver, name, prompt_of(length, length), adapter if row_key else None)
        assert far < LOGITS, f"{name} is off by {far:.1e}"
    driver.engine.check_integrity()
