from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import oracle
from trainer.base_model import load_model

pytestmark = pytest.mark.numeric


def test_int8_bases_compute_what_the_server_computes(tiny_base: Path) -> None:
    ids = [5, 6, 7, 8, 9, 10, 11]
    with torch.no_grad():
        got = load_model(tiny_base, torch.float32, "int8")(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(got, oracle.logits(tiny_base, None, ids, "int8"), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_rounded_weight(tiny_base: Path) -> None:
    layer = load_model(tiny_base, torch.float32, "int8").model.layers[0].self_attn.k_proj
    weight: Tensor = layer.weight.data.float() * (layer.weight.SCB / 127)[:, None]
    assert layer.weight.data.dtype == torch.int8
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    again = x.detach().clone().requires_grad_(True)
    for inputs, y in ((x, layer(x)), (again, torch.nn.functional.linear(again, weight, layer.bias))):
        torch.autograd.backward(y.pow(2).sum())
        assert inputs.grad is not None
    assert x.grad is not None
    assert again.grad is not None
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-5, atol=1e-5)
