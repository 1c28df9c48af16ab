"""Activations, alone and as gates."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.activation import Activation, activated, activated_torch, gated, gated_torch
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

KINDS: list[Activation] = list(get_args(Activation))
every = pytest.mark.parametrize("kind", KINDS)


def exact(x: Tensor, kind: Activation) -> Tensor:
    """In fp64, without the cancellation that torch has far below zero."""
    match kind:
        case "gelu":
            share: Tensor = torch.special.erfc(-x / math.sqrt(2))
            return x * 0.5 * share
        case "gelu_tanh":
            return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        case _:
            return activated_torch(x, kind)


@every
def test_numbers_are_right_to_a_few_units_in_the_last_place(variant: str, kind: Activation) -> None:
    if variant == native.TORCH:
        pytest.skip("torch's gelu cancels far below zero")
    x = torch.cat([torch.linspace(-4, 12, 9973), torch.linspace(-1e-3, 1e-3, 101)])[None]
    # an exponential within 2 units, and roundings before it that grow with its argument, at most 13 here
    torch.testing.assert_close(activated(x, kind).double(), exact(x.double(), kind), rtol=16 * 2**-23, atol=0)


@every
@pytest.mark.parametrize("size", [1, 7, 64, 577, 5000])
@pytest.mark.usefixtures("variant")
def test_activations_and_gates_are_their_twins(kind: Activation, size: int) -> None:
    wide = torch.randn(5, 2 * size + 9) * 3
    x, out = wide[:, 4 : 2 * size + 4], torch.zeros(5, size + 2)
    # where torch's gelu cancels, it rounds relative to x, at most 15 here, and to the gate
    torch.testing.assert_close(gated(x, kind), gated_torch(x, kind), rtol=1e-5, atol=15 * 15 * 2**-23)
    torch.testing.assert_close(activated(x, kind), activated_torch(x, kind), rtol=1e-5, atol=15 * 2**-23)
    assert gated(x, kind, out[:, 1:-1]).data_ptr() == out[:, 1:].data_ptr()
    assert torch.equal(out[:, 1:-1], gated(x, kind))
    assert not out[:, [0, -1]].any()


@every
def test_a_row_is_the_same_in_any_batch(variant: str, kind: Activation) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x = torch.randn(40, 2 * 577)
    alone = torch.cat([gated(row[None], kind) for row in x])
    for threads in THREADS:
        native.set_num_threads(threads)
        assert torch.equal(gated(x, kind), alone)


@every
@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_stay_so(kind: Activation) -> None:
    y = activated(torch.tensor([[torch.nan, torch.inf, 1e30, -1e30, 0.0, -200.0]]), kind)[0]
    assert bool(y[0].isnan())
    assert y[2] >= 1e30
    assert not bool(y[3:].any())


@every
@pytest.mark.usefixtures("variant")
def test_a_row_may_be_replaced(kind: Activation) -> None:
    x = torch.randn(6, 37)
    y = activated(x, kind)
    activated(x, kind, x)
    assert torch.equal(x, y)
