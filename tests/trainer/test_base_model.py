from __future__ import annotations

import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch

from bases.errors import BaseModelError
from tests.bases.test_quantization_saved import CONFIGS, save_quantized
from tests.trainer.support import make_config
from trainer.base_model import load_base, load_model, load_vocabulary, resolve_dtype


def test_a_base_is_frozen_and_knows_what_ends_a_turn(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(make_config(tmp_path, tiny_base, "training.dtype=auto"))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.end_ids, base.pad_id, base.dtype) == ((258,), 256, resolve_dtype("auto", torch.device("cpu")))
    assert base.name == tiny_base.name  # packages name no folders of the machine


def test_the_vocabulary_alone_is_that_of_the_loaded_base(tiny_base: Path, tmp_path: Path) -> None:
    for base_path, ends in ((tiny_base, (258,)), (copy_without_generation_config(tiny_base, tmp_path), (258,))):
        config = make_config(tmp_path, base_path, "added_tokens=['[X]']")
        base = load_base(config)
        tokenizer, end_ids = load_vocabulary(config)
        assert end_ids == base.end_ids == ends
        assert tokenizer.get_vocab() == base.tokenizer.get_vocab()
    path = copy_without_generation_config(tiny_base, tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [258, 257]}')
    config = make_config(tmp_path, path)
    assert load_vocabulary(config)[1] == load_base(config).end_ids == (258, 257)


def copy_without_generation_config(base: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy, dirs_exist_ok=True)
    (copy / "generation_config.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_is_bf16_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", torch.device("cpu")) == dtype
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_4bit_weights_still_carry_gradients_after_an_evaluation(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a CPU with AVX512-BF16, where bitsandbytes repacks weights at the first forward in eval mode
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    model = load_model(tiny_base, torch.float32, "nf4")
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14
    for layer in layers:
        before = layer.weight.data.clone()
        layer.eval()
        with torch.no_grad():
            layer(torch.randn(2, layer.in_features))
        assert torch.equal(layer.weight.data, before)
        x = torch.randn(2, layer.in_features, requires_grad=True)
        layer.train()(x).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_checkpoint_computes_in_the_type_asked_for(
    tiny_base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Not in the bf16 that it was saved with."""
    model = load_model(save_quantized(tiny_base, tmp_path / "nf4", CONFIGS["nf4"]), dtype, "none")
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {dtype}


def test_bases_that_cannot_be_loaded_are_said_so(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="there is no base model"):
        load_base(make_config(tmp_path, tiny_base, "base=no such base"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match="holds no"):
        load_base(make_config(tmp_path, tmp_path / "empty"))
