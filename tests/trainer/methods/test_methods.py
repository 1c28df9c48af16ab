from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.support import make_config
from trainer.base_model import Base, load_base
from trainer.errors import ConfigError
from trainer.methods import apply_method, trainable_parameters

LINEARS = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]  # of one layer of the tiny base


def apply(folder: Path, base: Path, *overrides: str) -> tuple[Base, Any]:
    config = make_config(folder, base, *overrides)
    loaded = load_base(config)
    torch.manual_seed(0)
    return loaded, apply_method(loaded, config.method)


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        (["r=4"], 2 * sum(4 * (a + b) for a, b in LINEARS)),
        (["r=4", "target_modules=[q_proj, v_proj]"], 2 * (4 * (64 + 64) + 4 * (64 + 32))),
        (["r=4", "target_modules=[q_proj]", "method.rank_pattern.q_proj=6"], 2 * 6 * (64 + 64)),
        (["r=4", "target_modules=[v_proj]", "bias=lora_only"], 2 * (4 * (64 + 32) + 32)),
        (["method=prefix", "tokens=5", "projection=false"], 5 * 2 * 2 * 32),
        (
            ["method=prefix", "tokens=5", "projection_hidden_size=16"],
            5 * 32 + (32 * 16 + 16) + (16 * 2 * 2 * 32 + 2 * 2 * 32),
        ),
        (["method=prompt", "tokens=7"], 7 * 64),
    ],
)
def test_only_the_adapter_is_trainable(tiny_base: Path, tmp_path: Path, overrides: list[str], parameters: int) -> None:
    assert count(apply(tmp_path, tiny_base, *overrides)[1]) == parameters


def test_modules_to_freeze_are_named_by_the_ends_of_their_paths(tiny_base: Path, tmp_path: Path) -> None:
    _, model = apply(tmp_path, tiny_base, "train_type=freeze", "freeze_module_name=layers.1.,norm")
    assert model.adapter_config["modules"] == ["model.layers.1", "model.norm"]
    assert {".".join(name.split(".")[:3]) for name in model.names} == {"model.layers.1", "model.norm.weight"}


def test_prompts_start_as_the_embeddings_of_their_text(tiny_base: Path, tmp_path: Path) -> None:
    base, model = apply(tmp_path, tiny_base, "method=prompt", "tokens=5", "init_text=abc")
    ids = base.tokenizer("abcab", add_special_tokens=False).input_ids
    embeddings = base.model.get_input_embeddings().weight
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, embeddings[torch.tensor(ids)])


def test_prompts_without_a_text_start_as_tokens_drawn_by_the_seed(tiny_base: Path, tmp_path: Path) -> None:
    base, model = apply(tmp_path, tiny_base, "method=prompt", "tokens=5")
    _, again = apply(tmp_path, tiny_base, "method=prompt", "tokens=5")
    rows = model.prompt_encoder["default"].embedding.weight
    assert torch.equal(rows, again.prompt_encoder["default"].embedding.weight)
    embeddings = base.model.get_input_embeddings().weight
    assert all((embeddings == row).all(dim=1).any() for row in rows)


def test_modules_that_the_base_lacks_are_named(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.target_modules: .*c_attn"):
        apply(tmp_path, tiny_base, "target_modules=[c_attn]")
