"""Expert LoRA as older releases of transformers and peft saved it: served as it was trained, or refused by name.

The oracles are peft, which converts what it loads, and the stock model with every update merged by hand: peft drops the
experts of some architectures, and what packages have outside of routed experts under the same names.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.limits import PackageLimits
from adapters.package.reading import read_package
from server.model.inputs import ModelInput, SequenceInput
from tests.bounds import LOGITS
from tests.factory import make_adapter, make_base
from tests.server.model.bench import BLOCK_SIZE, Bench
from tests.server.model.families.catalog import FAMILIES
from tests.server.model.families.per_expert import LEAVES, MIXTRAL, Saved, load, logits, peft_logits, swap
from tests.server.model.families.sweep import STD, lora

IDS = list(range(20, 52))
BOTH = ["gate_up_proj", "down_proj"]
STYLES = {"mixtral": ("block_sparse_moe", MIXTRAL), "phimoe": ("block_sparse_moe", MIXTRAL)}
CONVERTED_BY_PEFT = ["mixtral", "qwen3_moe", "olmoe", "glm4_moe"]
DROPPED_BY_PEFT = ["qwen2_moe", "phimoe"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("moe")

    def base(name: str, **changes: Any) -> Path:
        key = f"{name}{changes or ''}"
        if key not in made:
            made[key] = make_base(root / key, model_type=name, std=STD, **{**FAMILIES[name].config, **changes})
        return made[key]

    return base


def saved(base: Path, name: str, **options: Any) -> Saved:
    folder, leaves = STYLES.get(name, ("mlp", LEAVES))
    return Saved(load(base), folder=folder, leaves=leaves, **options)


def served(base: Path, path: Path) -> Tensor:
    """What this project answers to IDS. Shape: [len(IDS), vocab_size]."""
    bench = Bench(base, {"a": path})
    blocks = list(range(-(-len(IDS) // BLOCK_SIZE)))
    sequence = SequenceInput(bench.keys["a"], IDS, 0, blocks, list(range(len(IDS))))
    return bench.runner.execute(ModelInput([sequence]))


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("name", [*CONVERTED_BY_PEFT, *DROPPED_BY_PEFT, "deepseek_v3"])
def test_every_expert_a_module(bases: Any, tmp_path: Path, name: str) -> None:
    base = bases(name)
    package = saved(base, name).adapt_experts()
    leaves = STYLES.get(name, ("", LEAVES))[1]
    attention = "q_b_proj" if name == "deepseek_v3" else "q_proj"
    path = package.adapt_linears([attention]).write(tmp_path / "a", {*leaves, attention})
    found = served(base, path)
    assert_same(found, logits(package.trained, IDS))
    assert (found - logits(load(base), IDS)).abs().max() > 0.1
    if name in CONVERTED_BY_PEFT:
        assert_same(found, peft_logits(base, path, IDS))


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "glm4_moe"])
def test_with_shared_experts_and_dense_layers(bases: Any, tmp_path: Path, name: str) -> None:
    """They are linear maps as ever, under the names that routed experts had. peft drops them."""
    package = saved(bases(name), name).adapt_experts().adapt_linears(LEAVES)
    path = package.write(tmp_path / "a", LEAVES)
    assert_same(served(bases(name), path), logits(package.trained, IDS))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_routers_too(bases: Any, tmp_path: Path, name: str) -> None:
    package = saved(bases(name), name).adapt_experts().adapt_routers("gate")
    path = package.write(tmp_path / "a", {*STYLES.get(name, ("", LEAVES))[1], "gate"})
    found = served(bases(name), path)
    assert_same(found, logits(package.trained, IDS))
    assert_same(found, peft_logits(bases(name), path, IDS))


ONLY: dict[str, tuple[str, Any, Any]] = {
    "some experts": (r"experts\.[02]\.", r".*\.experts\.[02]\.(gate_proj|up_proj|down_proj)", {}),
    "one projection": ("down_proj", ["down_proj"], {}),
    "half of a parameter": ("up_proj", ["up_proj"], {}),
    "one layer": (r"layers\.1\.", list(LEAVES), {"layers_to_transform": [1]}),
    "a list of modules": (
        r"layers\.0.*experts\.3\.(up|gate)",
        ["layers.0.mlp.experts.3.up_proj", "layers.0.mlp.experts.3.gate_proj"],
        {},
    ),
    "all linear": ("", "all-linear", {}),
}


@pytest.mark.parametrize("case", ONLY)
def test_some_of_them(bases: Any, tmp_path: Path, case: str) -> None:
    keep, targets, config = ONLY[case]
    package = saved(bases("qwen3_moe"), "qwen3_moe", keep=lambda name: bool(re.search(keep, name))).adapt_experts()
    path = package.write(tmp_path / "a", targets, **config)
    found = served(bases("qwen3_moe"), path)
    assert_same(found, logits(package.trained, IDS))
    if case == "one projection":
        assert_same(found, peft_logits(bases("qwen3_moe"), path, IDS))


def test_ranks_of_their_own(bases: Any, tmp_path: Path) -> None:
    package = saved(bases("qwen3_moe"), "qwen3_moe")
    package.rank = lambda name: 5 if "1.up_proj" in name else 3 if "gate_proj" in name else 2
    package.adapt_experts()
    path = package.write(tmp_path / "a", LEAVES, rank_pattern={"experts.1.up_proj": 5, "gate_proj": 3})
    assert_same(served(bases("qwen3_moe"), path), logits(package.trained, IDS))


def test_patterns_of_whole_parameters(bases: Any, tmp_path: Path) -> None:
    package = saved(bases("qwen3_moe"), "qwen3_moe")
    package.rank = lambda name: 3 if "down_proj" in name else 2
    package.scale = lambda name: 9 / 3 if "down_proj" in name else 4 / 2
    path = package.adapt_experts().write(
        tmp_path / "a", LEAVES, rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 9}
    )
    found = served(bases("qwen3_moe"), path)
    assert_same(found, logits(package.trained, IDS))
    assert_same(found, peft_logits(bases("qwen3_moe"), path, IDS))


def test_rslora_of_what_is_not_fused(bases: Any, tmp_path: Path) -> None:
    package = saved(bases("qwen3_moe"), "qwen3_moe", keep=lambda name: "down_proj" in name)
    package.scale = lambda name: 4 / 2**0.5
    path = package.adapt_experts().write(tmp_path / "a", ["down_proj"], use_rslora=True)
    found = served(bases("qwen3_moe"), path)
    assert_same(found, logits(package.trained, IDS))
    assert_same(found, peft_logits(bases("qwen3_moe"), path, IDS))


FIRST = "base_model.model.model.layers.0.mlp.experts.0.gate_proj.lora_A.weight"
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "rslora": ({"use_rslora": True}, None, "Set use_rslora to false and lora_alpha to .* 5.65685425 for r 2"),
    "alpha of a part": ({"alpha_pattern": {"gate_proj": 9}}, None, "sets alpha_pattern for .* scale it otherwise"),
    "alpha of an expert": ({"alpha_pattern": {"experts.0.down_proj": 9}}, None, "sets alpha_pattern for"),
    "DoRA": ({"use_dora": True}, None, "sets use_dora for .* peft defines no meaning"),
    "QA-LoRA": ({"use_qalora": True}, None, "sets use_qalora for"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, None, "sets alora_invocation_tokens for"),
    "a bias": ({"lora_bias": True}, None, "sets lora_bias for"),
    "missing": (
        {},
        lambda t: [t.pop(FIRST.replace("lora_A", x)) for x in ("lora_A", "lora_B")],
        "is missing: target_mod",
    ),
    "missing half": ({}, lambda t: t.pop(FIRST), "lora_A.weight' is missing; its partner is there"),
    "other rank": ({}, lambda t: t.update({FIRST: t[FIRST][:1].clone()}), r"has shape \[1, 64\], expected \[2, 64\]"),
    "too many experts": ({}, lambda t: t.update({FIRST.replace(".0.gate", ".4.gate"): t[FIRST]}), "experts are one"),
    "unknown projection": ({}, lambda t: t.update({FIRST.replace("gate_proj", "w9"): t[FIRST]}), "experts are one"),
    "magnitudes": (
        {},
        lambda t: t.update({FIRST.replace("A.weight", "magnitude_vector"): t[FIRST]}),
        "unknown for an exp",
    ),
    "too deep": ({}, lambda t: t.update({FIRST.replace("layers.0", "layers.7"): t[FIRST]}), "base has 2 layers"),
    "another name": (
        {"target_modules": [*LEAVES, *MIXTRAL]},
        lambda t: t.update({k.replace("mlp.experts.0.gate_proj", "moe.experts.0.w1"): v for k, v in t.items()}),
        "holds two updates of expert 0",
    ),
    "untargeted": ({"target_modules": ["up_proj", "down_proj"]}, None, "target_modules does not name"),
    "by parameter, too": ({"target_parameters": BOTH}, None, "is missing: target_parameters"),
    "not finite": (
        {"lora_alpha": 1e38},
        lambda t: t.update({k: v * 1e5 for k, v in t.items()}),
        "lora_alpha is too large",
    ),
}


@pytest.fixture(scope="module")
def bench(bases: Any) -> Bench:
    return Bench(bases("qwen3_moe"), {})


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(bases: Any, bench: Bench, tmp_path: Path, case: str) -> None:
    config, change, words = REFUSED[case]
    path = saved(bases("qwen3_moe"), "qwen3_moe").adapt_experts().write(tmp_path / "a", LEAVES, **config)
    if change is not None:
        tensors = load_file(path / "adapter_model.safetensors")
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=words):
        bench.runner.prepare(path)


def test_zeros_of_other_experts_have_a_cap(bench: Bench, tmp_path: Path) -> None:
    spec = replace(bench.runner.spec, experts={k: (4096, *v[1:]) for k, v in bench.runner.spec.experts.items()})
    tensors = {FIRST: torch.ones(2, 64), FIRST.replace("lora_A", "lora_B"): torch.ones(32, 2)}
    one = saved(bench.base, "qwen3_moe")
    one.tensors = tensors
    path = one.write(tmp_path / "a", ["layers.0.mlp.experts.0.gate_proj"])
    package = read_package(path, PackageLimits(max_dense_bytes=1 << 20))
    with pytest.raises(PackageError, match="max_dense_bytes"):
        compile_package(package, spec)


# ---- factors that lie the other way ----


def count(base: Path) -> int:
    config = json.loads((base / "config.json").read_text())
    return int(config.get("num_local_experts") or config["num_experts"])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("version", ["0.17.0", "0.18.1", "0.19.0", "0.19.1.dev0@main", None])
def test_swapped_factors(bases: Any, tmp_path: Path, name: str, version: Any) -> None:
    base = bases(name, intermediate_size=48)
    config = lora(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=BOTH, use_rslora=True)
    path = make_adapter(base, tmp_path / "a", config)
    expected = peft_logits(base, path, IDS)
    assert_same(served(base, path), expected)
    swap(path, version, {"experts": count(base), "experts.base_layer": count(base)})
    assert_same(served(base, path), expected)


def test_an_older_package_that_lies_as_new_ones_do(bases: Any, tmp_path: Path) -> None:
    base = bases("qwen3_moe", moe_intermediate_size=48)
    path = make_adapter(base, tmp_path / "a", lora(target_modules=[], target_parameters=["down_proj"]))
    expected = peft_logits(base, path, IDS)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"peft_version": "0.18.0"}))
    assert_same(served(base, path), expected)


def test_where_nothing_tells_how_factors_lie(bases: Any, tmp_path: Path) -> None:
    base = bases("qwen3_moe", moe_intermediate_size=64)  # gate and up tell, down does not
    square = make_adapter(base, tmp_path / "a", lora(target_modules=[], target_parameters=["down_proj"]))
    assert served(base, square) is not None
    swap(square, "0.18.0", {"experts": 4})
    with pytest.raises(
        UnsupportedKindError, match=r"'0\.18\.0': before 0\.19\.1 peft saved factors of experts in either"
    ):
        Bench(base, {"a": square})
    both = make_adapter(base, tmp_path / "b", lora(target_modules=[], target_parameters=BOTH))
    expected = peft_logits(base, both, IDS)
    swap(both, "0.18.0", {"experts": 4, "experts.base_layer": 4})
    assert_same(served(base, both), expected)


def test_swapped_factors_of_a_new_package_are_refused(bases: Any, tmp_path: Path) -> None:
    base = bases("qwen3_moe")
    path = make_adapter(base, tmp_path / "a", lora(target_modules=[], target_parameters=["down_proj"]))
    swap(path, "0.21.0", {"experts": 4})
    with pytest.raises(PackageError, match="has shape"):
        Bench(base, {"a": path})


@pytest.mark.parametrize("kind", ["IA3", "LOHA"])
def test_other_kinds_of_experts_are_refused_by_name(bench: Bench, tmp_path: Path, kind: str) -> None:
    config: dict[str, Any] = {"peft_type": kind, "target_modules": ["gate_proj"]}
    if kind == "LOHA":
        config |= {"r": 2, "alpha": 2}
        shapes = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 64), "hada_w2_a": (32, 2), "hada_w2_b": (2, 64)}
    else:
        config["feedforward_modules"] = []
        shapes = {"ia3_l": (32, 1)}
    tensors = {FIRST.replace("lora_A.weight", key): torch.ones(shape) for key, shape in shapes.items()}
    path = tmp_path / "a"
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PackageError, match="experts are one parameter for each projection on this base: only LoRA"):
        bench.runner.prepare(path)
