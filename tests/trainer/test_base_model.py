from __future__ import annotations

import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch

from bases.compute import resolve_dtype
from bases.errors import BaseModelError
from bases.gguf_blocks import StoredBlocks
from tests.bases.gguf_files import add_blocks
from tests.bases.test_quantization_saved import CONFIGS, save_quantized
from tests.trainer.support import make_config
from trainer.base_model import load_base, load_model, load_vocabulary


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
def test_a_gguf_files_values_are_trained_on(tiny_base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    base = add_blocks(tiny_base, tmp_path / "base")
    model, blocks = load_model(base, dtype, "gguf"), StoredBlocks(base)
    assert len(blocks) == 15
    for name, stored in blocks.items():
        assert torch.equal(model.get_parameter(name), stored.dense().to(dtype)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(BaseModelError, match="keeps no weights of a GGUF file"):
        load_model(tiny_base, dtype, "gguf")


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
