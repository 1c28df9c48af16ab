"""Architectures that cannot be served are refused at start, in words that name them and say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Gemma3Config

from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.families import PATCHES, TESTED
from server.model.model_runner import load_runner
from tests.factory import TINY, make_base
from tests.server.model.families.catalog import FAMILIES, PATCHED, model_type_of

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({}, "mamba cannot be served: 0 of its 2 layers attend"),
    "falcon_h1": ({}, r"falcon_h1 cannot be served: the layer .*conv1d \(Conv1d\) carries state"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "lfm2 cannot be served: 1 of its 2 layers attend"),
    "minimax": ({"num_local_experts": 4}, "minimax cannot be served: 1 of its 2 layers attend"),
    "bert": ({}, "bert is an encoder: it reads a text in both directions"),
    "llama4_text": ({"num_local_experts": 4}, "llama4_text cannot be served: it has layers of the type chunked"),
    "gpt_neox_japanese": ({}, "gpt_neox_japanese cannot be served: 0 of its 2 layers attend"),
    "diffllama": ({}, "diffllama cannot be served"),
}
SERVED: dict[str, dict[str, Any]] = {
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "stablelm": {},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def load(base: Path) -> None:
    load_runner(EngineConfig(model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.01, threads=1))


@pytest.mark.parametrize("model_type", REFUSED)
def test_decoders_that_do_not_fit(model_type: str, tmp_path: Path) -> None:
    options, message = REFUSED[model_type]
    with pytest.raises(EngineStartError, match=message):
        load(make_base(tmp_path / "base", model_type=model_type, **options))


@pytest.mark.parametrize("model_type", SERVED)
def test_untested_ones_that_prove_to_fit(model_type: str, tmp_path: Path) -> None:
    load(make_base(tmp_path / "base", model_type=model_type, **SERVED[model_type]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "whisper"}, "whisper is an encoder-decoder model"),
        ({"model_type": "clip"}, "clip is a model of more than text|clip is no language model"),
        ({"model_type": "vit"}, "vit is no language model"),
        ({"model_type": "wav2vec2"}, "wav2vec2 is no language model"),
        ({"model_type": "newest"}, "newest, which this version of transformers does not know; update"),
        ({"model_type": "newest", "auto_map": {"AutoConfig": "x.Y"}}, "newest, which comes as code beside its weights"),
    ],
)
def test_what_the_config_tells(config: dict[str, Any], message: str, tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path)
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineStartError, match=message):
        load(base)


def test_a_model_that_sees(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Gemma3Config(text_config=TINY, vision_config=vision)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma3")
    with pytest.raises(EngineStartError, match=r"gemma3 is a model of more than text \(vision\)"):
        load(tmp_path / "gemma3")


def test_the_list_of_tested_architectures_is_the_catalog() -> None:
    assert {model_type_of(name) for name in FAMILIES} == TESTED
    assert set(PATCHED) == set(PATCHES)


def copy_of(base: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
