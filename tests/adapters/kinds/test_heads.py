"""Heads are taken out of packages before their kinds are compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.heads import take_head
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.registry import parse_config
from adapters.kinds.saved_adapter import SavedAdapter

LINEARS = {"model.layers.0.self_attn.q_proj": (8, 8), "lm_head": (32, 8)}
BASE = BaseSpec("b", "f", 2, 1, 4, 8, 32, linears=LINEARS, embedding="model.embed_tokens", head="lm_head")
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FACTOR = torch.ones(2, 8)
WEIGHT = torch.arange(24.0).view(3, 8)


def package(tensors: dict[str, Tensor], task: str | None = "SEQ_CLS", **config: object) -> SavedAdapter:
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "task_type": task, **config}
    return SavedAdapter(config=parse_config(raw), tensors=tensors)


def test_the_head_goes_and_the_rest_stays() -> None:
    score = "base_model.model.score"
    tensors = {A: FACTOR, f"{score}.modules_to_save.weight": WEIGHT, f"{score}.original_module.weight": 0 * WEIGHT}
    given = package({**tensors, f"{score}.bias": torch.ones(3)}, modules_to_save=["classifier", "score", "norm"])
    rest, head = take_head(given, BASE)
    assert head is not None
    assert list(rest.tensors) == [A]
    assert isinstance(rest.config, LoraConfig)
    assert rest.config.modules_to_save == ["norm"]
    torch.testing.assert_close(head.outputs(torch.eye(8)), WEIGHT.T + 1)
    same, none = take_head(package({A: FACTOR}, "CAUSAL_LM"), BASE)
    assert (same.tensors, none) == ({A: FACTOR}, None)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "head's weight"),
        ({"base_model.model.score.weight": WEIGHT[:, :5]}, "another base"),
        ({"base_model.model.score.weight": WEIGHT, "base_model.model.score.bias": torch.ones(2)}, r"score\.bias"),
        ({"base_model.model.classifier.dense.weight": WEIGHT}, "several parts"),
        ({"base_model.model.score.weight": WEIGHT, "base_model.model.classifier.weight": WEIGHT + 1}, "another head"),
    ],
)
def test_other_heads_are_refused(tensors: dict[str, Tensor], problem: str) -> None:
    with pytest.raises(PackageError, match=problem):
        take_head(package({A: FACTOR, **tensors}), BASE)


def test_names_within_a_backbone_become_those_of_the_whole_model() -> None:
    short = A.replace("base_model.model.model.", "base_model.model.")
    for name in (short, A):
        for task in ("FEATURE_EXTRACTION", None):  # sentence-transformers names none
            rest, head = take_head(package({name: FACTOR}, task), BASE)
            assert (list(rest.tensors), head) == ([A], None)
    of_head = "base_model.model.lm_head.lora_A.weight"
    for names in ([of_head], [of_head, short]):
        rest, _ = take_head(package(dict.fromkeys(names, FACTOR), None), BASE)
        assert list(rest.tensors) == names
