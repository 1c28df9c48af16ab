"""Checkpoints that were quantized by bitsandbytes before they were saved: served as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bases.fingerprint import base_fingerprint
from bases.packed import PackedLinear
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.loader import load_base
from tests import oracle
from tests.bounds import packed_logits
from tests.factory import make_base, make_tokenizer
from tests.server.model.support import assert_mixed_batch_equals_peft, make_runner

pytestmark = pytest.mark.numeric

CONFIGS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16),
    "nf4-dq": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True),
    "fp4-dq": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def save_quantized(base: Path, out: Path, config: BitsAndBytesConfig, **options: Any) -> Path:
    """A checkpoint as users make them: load quantized, save."""
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu", dtype="float32")
    model.save_pretrained(out, **options)
    make_tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def checkpoints(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("quantized")
    return {name: save_quantized(tiny_base, root / name, config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("quantize", CONFIGS)
def test_a_mixed_batch_equals_peft_over_the_original_quantized_alike(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], checkpoints: Mapping[str, Path], quantize: str
) -> None:
    runner = make_runner(checkpoints[quantize], "auto")
    assert runner.quantization == quantize
    assert runner.base_bytes == make_runner(tiny_base, quantize).base_bytes
    assert_mixed_batch_equals_peft(runner, tiny_base, tiny_adapters, quantize)


@pytest.mark.parametrize("quantize", ["nf4", "nf4-dq", "fp4"])
def test_the_oracle_reads_the_checkpoint_too(checkpoints: Mapping[str, Path], quantize: str) -> None:
    """peft over the saved checkpoint itself, not over the original: nothing of ours quantizes here."""
    from server.model.inputs import ModelInput, SequenceInput

    ids = [5, 6, 7, 8, 9]
    got = make_runner(checkpoints[quantize], quantize).execute(
        ModelInput([SequenceInput(None, ids, 0, [0, 1], [len(ids) - 1])])
    )
    want = oracle.logits(checkpoints[quantize], None, ids)[-1]
    torch.testing.assert_close(got[0], want, rtol=0, atol=packed_logits(quantize))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_compute_type_is_ours_to_choose(checkpoints: Mapping[str, Path], dtype: str) -> None:
    base = load_base(EngineConfig(model=str(checkpoints["nf4"]), dtype=dtype, device="cpu"))
    assert (base.quantization, base.dtype) == ("nf4", getattr(torch, dtype))
    layer = base.model.get_submodule("model.layers.0.mlp.up_proj")
    if isinstance(layer, PackedLinear):
        assert layer(torch.ones(1, layer.in_features)).dtype == base.dtype
    else:
        assert layer.compute_dtype == base.dtype


@pytest.mark.parametrize("quantize", CONFIGS)
def test_an_explicit_quantization_must_be_that_of_the_checkpoint(
    checkpoints: Mapping[str, Path], quantize: str
) -> None:
    assert load_base(EngineConfig(model=str(checkpoints[quantize]), quantize=quantize)).quantization == quantize
    other = "int8" if quantize != "int8" else "nf4"
    for asked in (other, "none"):
        words = f"quantized already, to {quantize}: leave --quantize out or give --quantize {quantize}, not {asked}"
        with pytest.raises(EngineStartError, match=words):
            load_base(EngineConfig(model=str(checkpoints[quantize]), quantize=asked))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized with gptq; of quantized checkpoints only those of bitsandb"),
        ({"quant_method": "fp8"}, "quantized with fp8"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "an unknown method"),
        ({}, "an unknown method"),
    ],
)
def test_other_quantized_checkpoints_are_refused(config: dict[str, object], words: str, tmp_path: Path) -> None:
    path = make_base(tmp_path / "base")
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, "quantization_config": config}))
    with pytest.raises(EngineStartError, match=words):
        load_base(EngineConfig(model=str(path)))


@pytest.mark.parametrize("quantize", CONFIGS)
def test_the_fingerprint_is_stable(
    tiny_base: Path, checkpoints: Mapping[str, Path], quantize: str, tmp_path: Path
) -> None:
    """The same when the checkpoint is made anew in other shards, or says to compute in another type."""
    fingerprint = base_fingerprint(checkpoints[quantize])
    assert fingerprint != base_fingerprint(tiny_base)
    anew = save_quantized(tiny_base, tmp_path / "anew", CONFIGS[quantize], max_shard_size="50KB")
    assert (anew / "model.safetensors.index.json").exists()
    config = json.loads((anew / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "float16"
    (anew / "config.json").write_text(json.dumps(config))
    assert base_fingerprint(anew) == fingerprint
