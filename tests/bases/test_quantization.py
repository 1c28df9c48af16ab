"""The INT8 product that training and serving share: what it computes, and its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bases.names import QUANTIZATIONS
from bases.quantization import quantization_config, saved_quantization
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_with_a_gradient_is_the_product_without(tiny_base: Path, dtype: torch.dtype) -> None:
    """Training multiplies as serving does, bit for bit, and its gradient is the weight that both multiply by."""
    layer = load_model(tiny_base, dtype, "int8").model.layers[0].mlp.up_proj
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        served = layer(x)
    trained = layer(x.clone().requires_grad_(True))
    assert trained.requires_grad
    assert torch.equal(trained.detach(), served)
    (gradient,) = torch.autograd.grad(layer(y := x.clone().requires_grad_(True)).sum(), y)
    weight = layer.weight.data.double() * (layer.weight.SCB.double() / 127)[:, None]
    # 128 products of a rounded scale each, summed in fp32 and rounded once
    bound = torch.finfo(dtype).eps * weight.abs().sum(0)
    assert ((gradient.double() - weight.sum(0)).abs() <= bound).all()


def test_a_bf16_product_is_scaled_in_fp32_and_rounded_once(tiny_base: Path) -> None:
    layer = load_model(tiny_base, torch.bfloat16, "int8").model.layers[0].mlp.up_proj
    layer.bias = None
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = x @ layer.weight.data.bfloat16().T
    scale = layer.weight.SCB / 127
    assert torch.equal(layer(x), (product.float() * scale).bfloat16())
    assert not torch.equal(layer(x), product * scale.bfloat16())


@pytest.mark.parametrize("name", [name for name in QUANTIZATIONS if name != "gguf"])
def test_a_configuration_is_recognised_by_its_name(name: str) -> None:
    class Config:
        quantization_config = quantization_config(name, torch.float32)

    assert saved_quantization(Config) == name
