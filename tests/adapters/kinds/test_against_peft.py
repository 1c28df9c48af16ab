"""Compiled ops in a stock model against PEFT running the same saved adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.factory import make_adapter, make_base
from tests.kinds import CASES


@pytest.fixture(scope="module", params=list(BASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **BASES[request.param])


def attention_modules(base: Path) -> list[str]:
    return ["c_attn", "c_proj"] if base.name == "gpt2" else ["q_proj", "v_proj"]


@pytest.mark.parametrize("name", ["plain", "rslora", "all-linear", "bias-all", "bias-only", "regex", "float-alpha"])
def test_lora(base: Path, name: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    common: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM", "fan_in_fan_out": base.name == "gpt2"}
    modules = attention_modules(base)
    configs: dict[str, dict[str, Any]] = {
        "plain": {"target_modules": modules},
        "rslora": {"target_modules": modules, "use_rslora": True, "lora_alpha": 3},
        "all-linear": {"target_modules": "all-linear"},
        "bias-all": {"target_modules": modules, "bias": "all"},
        "bias-only": {"target_modules": modules, "bias": "lora_only"},
        "regex": {"target_modules": rf".*\.(0|1)\..*\.({modules[0]})"},
        "float-alpha": {"target_modules": modules, "lora_alpha": 8 * 2**0.5},
    }
    path = make_adapter(base, tmp_path / "adapter", LoraConfig(**common, **configs[name]))
    assert error(base, path) < TOLERANCE


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 6, "v_proj": 3}, "use_rslora": True},
        {"rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": 6}, "alpha_pattern": {"^model.layers.0.*v_proj": 32}},
        {"rank_pattern": {"proj": 6}, "alpha_pattern": {"q_proj|v_proj": 32, "q_proj": 64}},
        {"alpha_pattern": {"b": 99, "self_attn.q_proj": 1, "q_proj": 64}},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"exclude_modules": ["0.self_attn.q_proj"]},
        {"exclude_modules": r".*\.1\..*q_proj"},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_lora_patterns(options: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "adapter", config)) < TOLERANCE


@pytest.mark.parametrize("projection", [False, True])
def test_prefix(base: Path, projection: bool, tmp_path: Path) -> None:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=projection, encoder_hidden_size=32, task_type="CAUSAL_LM"
    )
    assert error(base, make_adapter(base, tmp_path / "adapter", config, std=0.4)) < TOLERANCE


def test_prompt(base: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    assert error(base, make_adapter(base, tmp_path / "adapter", config, std=0.4)) < TOLERANCE


def test_without_task_type(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    path = make_adapter(tiny_base, tmp_path / "adapter", LoraConfig(r=2, target_modules=["q_proj"]))
    assert "auto_mapping" in (path / "adapter_config.json").read_text()
    assert error(tiny_base, path) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_every_kind(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    assert error(tiny_base, tiny_adapters[name]) < TOLERANCE
