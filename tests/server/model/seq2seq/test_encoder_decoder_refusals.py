"""What an encoder-decoder refuses, in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from adapters.errors import AdapterError, BaseMismatchError, PackageError, UnsupportedKindError
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.model_runner import ModelRunner, load_runner
from tests.server.model.seq2seq.bench import Bench

Adapters = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def runner(s2s_base: Callable[[str], Path]) -> ModelRunner:
    return Bench(s2s_base("t5"), {}).runner


def changed(package: Path, path: Path, config: dict[str, Any], drop: str = "") -> Path:
    """A copy of ``package`` with other values in its configuration, without the tensors that contain ``drop``."""
    shutil.copytree(package, path)
    raw = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**raw, **config}))
    if drop:
        tensors = load_file(path / "adapter_model.safetensors")
        save_file({n: t for n, t in tensors.items() if drop not in n}, path / "adapter_model.safetensors")
    return path


CASES: dict[str, tuple[str, dict[str, Any], str, type[AdapterError], str]] = {
    "lora of a decoder": (
        "lora-qv",
        {"task_type": "CAUSAL_LM"},
        "",
        BaseMismatchError,
        "decoder-only.*encoder-decoder",
    ),
    "lora lacking a tensor": ("lora-qv", {}, "decoder.block.1.layer.1.EncDecAttention.v", PackageError, "is missing"),
    "prefix for one stack": (
        "prefix-5",
        {"num_transformer_submodules": 1},
        "",
        UnsupportedKindError,
        "cross-attention",
    ),
    "prefix of a shallow base": ("prefix-5", {"num_layers": 2}, "", BaseMismatchError, "number of layers 2"),
    "prefix of another size": ("prefix-5", {"num_layers": 4}, "", PackageError, "prompt_embeddings"),
    "prompt of another size": ("prompt-7", {"num_transformer_submodules": 1}, "", PackageError, r"expected \[7, 64\]"),
    "multitask for both": ("multitask", {"num_transformer_submodules": 2}, "", UnsupportedKindError, "submodules=1"),
    "three stacks": (
        "prompt-7",
        {"num_transformer_submodules": 3},
        "",
        PackageError,
        "num_transformer_submodules is 3",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_packages(name: str, runner: ModelRunner, s2s_adapters: Adapters, tmp_path: Path) -> None:
    adapter, config, drop, error, words = CASES[name]
    package = changed(s2s_adapters("t5")[adapter], tmp_path / "p", config, drop)
    with pytest.raises(error, match=words):
        runner.prepare(package)


def test_a_package_without_a_task_is_served(runner: ModelRunner, s2s_adapters: Adapters, tmp_path: Path) -> None:
    package = changed(s2s_adapters("t5")["lora-qv"], tmp_path / "p", {"task_type": None})
    assert runner.prepare(package).adapter.ops


def test_embeddings_are_not_adapted(runner: ModelRunner, s2s_adapters: Adapters, tmp_path: Path) -> None:
    package = changed(s2s_adapters("t5")["lora-qv"], tmp_path / "p", {"target_modules": ["shared"]})
    save_file(
        {
            "base_model.model.shared.lora_embedding_A": torch.ones(8, 320),
            "base_model.model.shared.lora_embedding_B": torch.ones(64, 8),
        },
        package / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match="shared"):
        runner.prepare(package)


def test_adapters_of_an_encoder_decoder_on_a_decoder(tiny_base: Path, s2s_adapters: Adapters, tmp_path: Path) -> None:
    config = {"model": str(tiny_base), "quantize": "none", "dtype": "float32", "kv_cache_gb": 0.02}
    runner = load_runner(EngineConfig(**config))  # type: ignore[arg-type]
    for name in ("lora-qv", "prefix-5", "prompt-7"):
        with pytest.raises(BaseMismatchError, match="task_type is SEQ_2_SEQ_LM"):
            runner.prepare(s2s_adapters("t5")[name])
    for name in ("prefix-5", "prompt-7"):
        package = changed(s2s_adapters("t5")[name], tmp_path / name, {"task_type": None})
        with pytest.raises(BaseMismatchError, match="num_transformer_submodules is 2"):
            runner.prepare(package)


def test_float16(s2s_base: Callable[[str], Path]) -> None:
    with pytest.raises(EngineStartError, match="t5 was trained in bfloat16"):
        load_runner(EngineConfig(model=str(s2s_base("t5")), quantize="none", dtype="float16", kv_cache_gb=0.02))


def test_other_families(tmp_path: Path) -> None:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    config = AutoConfig.for_model("bart", vocab_size=300, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EngineStartError, match=r"bart is an encoder-decoder.*served are t5, mt5"):
        load_runner(EngineConfig(model=str(tmp_path), quantize="none"))
