"""LoRA of routed experts and routers: formats, mixtures, refusals. Parity by family is in test_families.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.ops.replace import ReplaceParameters
from adapters.ops.routed_experts import ExpertLowRank
from tests.factory import make_adapter, make_base
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.bench import Bench
from tests.server.model.families.catalog import FAMILIES
from tests.server.model.families.sweep import TOLERANCE, difference, lora

BOTH = ["gate_up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "both": {"target_modules": [], "target_parameters": BOTH},
    "rank 11": {"r": 11, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    "rslora": {"target_modules": [], "target_parameters": ["gate_up_proj"], "use_rslora": True, "lora_alpha": 3},
    "router": {"target_modules": [], "target_parameters": ["gate.weight", "down_proj"]},
    "one layer": {"target_modules": ["v_proj"], "target_parameters": ["layers.1.mlp.experts.gate_up_proj"]},
    "patterns": {
        "target_modules": [],
        "target_parameters": BOTH,
        "rank_pattern": {"gate_up_proj": 2, r"layers.1.*down_proj": 5},
        "alpha_pattern": {"down_proj": 24},
    },
    "linear": {"target_modules": [], "target_parameters": ["q_proj.weight", "o_proj.weight"]},
}
PATTERNS = "ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FAMILIES["qwen3_moe"].config
    return make_base(tmp_path_factory.mktemp("moe") / "base", model_type="qwen3_moe", **config)


@pytest.mark.filterwarnings(PATTERNS)
def test_many_adapters_of_experts_mixed(base: Path, tmp_path: Path) -> None:
    driver = Driver(base)
    paths = {
        name: make_adapter(base, tmp_path / name, lora(**options), seed=seed)
        for seed, (name, options) in enumerate(ADAPTERS.items())
    }
    paths["attention"] = make_adapter(base, tmp_path / "attention", lora(target_modules=["q_proj", "o_proj"]))
    keys = {name: driver.load(name, path) for name, path in paths.items()}
    for i, (name, key) in enumerate(keys.items()):
        driver.submit(name, prompt_of(i, 4 + 3 * i), key, 4)
        driver.submit(f"{name} again", prompt_of(90 + i, 11), key, 4)
    driver.submit("base", prompt_of(50, 19), None, 4)
    driver.run()
    assert difference(driver, "base", prompt_of(50, 19), None) < TOLERANCE
    for i, (name, path) in enumerate(paths.items()):
        assert difference(driver, name, prompt_of(i, 4 + 3 * i), path) < TOLERANCE, name
        assert difference(driver, f"{name} again", prompt_of(90 + i, 11), path) < TOLERANCE, name


def test_what_the_ops_are(base: Path, tmp_path: Path) -> None:
    path = make_adapter(base, tmp_path / "a", lora(target_modules=[], target_parameters=["gate.weight", *BOTH]))
    adapter = Bench(base, {"a": path}).runner.prepare(path).adapter
    (router,) = adapter.ops["model.layers.0.mlp.gate"]
    (experts,) = adapter.ops["model.layers.0.mlp.experts.down_proj"]
    assert isinstance(router, ReplaceParameters)
    assert isinstance(experts, ExpertLowRank)
    assert tuple(experts.a.shape) == (4, 32, 8), "the rank of 4 is padded to what CUDA's grouped product reads"
    assert not torch.any(experts.a[..., 4:])


WRAPPED = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
OUTER = "base_model.model.model.layers.0.mlp.experts.lora_B.weight"


def broken(change: str, tensors: dict[str, torch.Tensor]) -> None:
    if change == "missing":
        del tensors[WRAPPED]
    elif change == "missing outer":
        del tensors[OUTER]
    elif change == "deeper":
        tensors[WRAPPED.replace("base_layer", "base_layer.base_layer")] = tensors[WRAPPED].clone()
    elif change == "other rank":
        tensors[WRAPPED] = tensors[WRAPPED][:-4].contiguous()
    elif change == "other base":
        tensors[OUTER] = tensors[OUTER][:-1].contiguous()
    elif change == "exchanged":
        tensors[WRAPPED] = tensors[WRAPPED].T.contiguous()
    else:
        tensors[OUTER] = tensors[OUTER] * float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "experts.base_layer.lora_A.weight' is missing: target_parameters names"),
        ("missing outer", "experts.lora_B.weight' is missing: target_parameters names"),
        ("deeper", "base_layer.base_layer"),
        ("other rank", r"has shape \[12, 64\], expected \[16, 64\]"),
        ("other base", r"has shape \[63, 16\], expected \[64, 16\]"),
        ("exchanged", "made for another base"),
        ("infinite", "holds NaN or infinity"),
    ],
)
def test_broken_packages_are_refused(base: Path, tmp_path: Path, change: str, message: str) -> None:
    path = make_adapter(base, tmp_path / "a", lora(**ADAPTERS["both"]))
    tensors = load_file(path / "adapter_model.safetensors")
    broken(change, tensors)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=message):
        Bench(base, {"a": path})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target_parameters": []}, PackageError, "experts"),
        ({"target_parameters": ["gate_up_proj"]}, PackageError, "is missing|has shape"),
        ({"target_parameters": "down_proj"}, PackageError, "target_parameters"),
        ({"target_parameters": ["x" * 5000]}, PackageError, "pattern"),
        ({"use_dora": True}, UnsupportedKindError, "target_parameters and use_dora"),
        ({"lora_bias": True}, UnsupportedKindError, "target_parameters and lora_bias"),
        ({"alora_invocation_tokens": [1, 2]}, UnsupportedKindError, "target_parameters and alora_invocation_tokens"),
    ],
)
def test_configurations_that_do_not_fit(
    base: Path, tmp_path: Path, change: dict[str, object], error: type[AdapterError], message: str
) -> None:
    path = make_adapter(base, tmp_path / "a", lora(**ADAPTERS["both"]))
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=message):
        Bench(base, {"a": path})
