"""The bounds are wide enough for any order of the sums, and narrow enough to find what is really wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracle
from tests.bounds import LOGITS, bound

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [16, 128, 2048])
def test_any_order_of_a_sum_is_within_and_a_coarser_type_is_not(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(length)
    x, w = torch.randn(64, length, dtype=dtype), torch.randn(64, length, dtype=dtype)
    scale = float((x.abs() @ w.abs().T).max())
    order = torch.randperm(length)
    allowed = bound(dtype, length, scale=scale)
    one, other = x @ w.T, x[:, order] @ w[:, order].T
    assert float((one - other).abs().max()) < allowed
    coarser = {torch.float32: torch.float16, torch.float64: torch.float32}[dtype]
    assert float((x.to(coarser).to(dtype) @ w.T - one).abs().max()) > allowed


def weight_in_half(model: Any) -> None:
    weight = model.layers[1].mlp.down_proj.base_layer.weight
    weight.copy_(weight.half())


def lora_scale(model: Any) -> None:
    model.layers[1].self_attn.v_proj.scaling["default"] *= 1.001


def bias_gone(model: Any) -> None:
    model.layers[1].mlp.down_proj.base_layer.bias.zero_()


def frequencies(model: Any) -> None:
    model.rotary_emb.inv_freq *= 1.0001


def attention_scale(model: Any) -> None:
    model.layers[0].self_attn.scaling *= 1.001


def norm_epsilon(model: Any) -> None:
    model.layers[0].input_layernorm.variance_epsilon *= 10


@pytest.mark.parametrize("fault", [weight_in_half, lora_scale, bias_gone, frequencies, attention_scale, norm_epsilon])
@torch.no_grad()
def test_a_small_fault_of_the_model_is_outside(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], fault: Callable[[Any], None]
) -> None:
    ids = torch.randint(0, 250, (1, 14), generator=torch.Generator().manual_seed(3))
    model = copy.deepcopy(oracle._model(tiny_base, tiny_adapters["lora-r8"], "none"))
    sound = model(input_ids=ids).logits
    fault(model.base_model.model.model)
    assert float((model(input_ids=ids).logits - sound).abs().max()) > LOGITS
