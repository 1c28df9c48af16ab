"""Hidden states of texts: the same however a batch is padded, whatever adapter acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, OPTConfig

from tests.trainer.every_method import METHODS
from tests.trainer.pooling.support import class_rows
from tests.trainer.support import make_config
from trainer.base_model import Base, load_base
from trainer.config.task import Pooling
from trainer.errors import ConfigError
from trainer.methods import apply_method, trainable_parameters
from trainer.pooling.model import PooledModel, head_of_tokens, pool

TEXTS = [[260, 270, 280, 290, 300], [261, 262], [263, 264, 265]]
PAD = 256


def batch(side: str) -> dict[str, torch.Tensor]:
    """TEXTS, padded on ``side``."""
    longest = max(map(len, TEXTS))
    rows = [([PAD] * (longest - len(ids)), ids) for ids in TEXTS]
    ids = [gap + text if side == "left" else text + gap for gap, text in rows]
    mask = [[0] * len(gap) + [1] * len(t) if side == "left" else [1] * len(t) + [0] * len(gap) for gap, t in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def alone(ids: list[int]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def adapted(tiny_base: Path, folder: Path, method: str) -> tuple[Any, Base]:
    """The base with an adapter of ``method`` that changes what it computes."""
    config = make_config(folder, tiny_base, "task=classification", *METHODS[method], rows=class_rows())
    base = load_base(config)
    torch.manual_seed(0)
    model = apply_method(base, config.method)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, base


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_padding_makes_no_difference(tiny_base: Path, tmp_path: Path, method: str, pooling: Pooling) -> None:
    model = PooledModel(*adapted(tiny_base, tmp_path, method), pooling, 3).eval()
    single = torch.cat([model(**alone(ids)) for ids in TEXTS])
    assert torch.allclose(model(**batch("right")), single, atol=1e-5)
    if method == "lora":  # others of ours want padding on the right, as training pads
        assert torch.allclose(model(**batch("left")), single, atol=1e-5)
    assert not torch.allclose(single[0], single[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_hidden_states_of_the_backbone(tiny_base: Path, tmp_path: Path, pooling: Pooling) -> None:
    config = make_config(
        tmp_path, tiny_base, "task=embedding", "data.validation=0", "eval_steps=null", rows=class_rows()
    )
    base = load_base(config)
    model = PooledModel(base.model, base, pooling).eval()
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for ids in TEXTS:
        states = plain.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        wanted = states[-1] if pooling == "last" else states.mean(0)
        assert torch.allclose(model(**alone(ids))[0], wanted, atol=1e-5)
    model.close()
    logits = base.model(input_ids=torch.tensor([TEXTS[0]])).logits
    assert torch.allclose(logits, plain(input_ids=torch.tensor([TEXTS[0]])).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (LlamaConfig(num_hidden_layers=1), ("score", True)),
        (GPT2Config(n_layer=1), ("classifier", True)),
        (BloomConfig(n_layer=1), ("classifier", True)),
        (OPTConfig(num_hidden_layers=1), ("score", True)),  # of which transformers has no model for tokens
    ],
)
def test_the_head_of_tokens_is_the_one_of_transformers(config: Any, head: tuple[str, bool]) -> None:
    assert head_of_tokens(config) == head


def test_every_token_has_its_state() -> None:
    states = torch.arange(12.0).view(1, 6, 2)  # two virtual rows before four tokens
    assert pool(states, torch.ones(1, 4), "all").tolist() == states[:, 2:].tolist()


def test_virtual_rows_and_padding_are_left_out() -> None:
    states = torch.arange(12.0).view(1, 6, 2)  # two virtual rows, three tokens, one of padding
    mask = torch.tensor([[1, 1, 1, 0]])
    assert pool(states, mask, "last").tolist() == [[8.0, 9.0]]
    assert pool(states, mask, "mean").tolist() == [[6.0, 7.0]]


def test_an_adapter_of_the_output_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "task=classification", *METHODS["lora-saved"], rows=class_rows())
    base = load_base(config)
    with pytest.raises(ConfigError, match="trains the output head"):
        PooledModel(apply_method(base, config.method), base, "last", 2)
