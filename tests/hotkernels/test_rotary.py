"""Rotary positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.rotary import rotate, rotate_torch
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric


def angles(rows: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(rows, half) * 3
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (24, 5), (50, 17), (2, 1)])
@pytest.mark.usefixtures("variant")
def test_heads_turn_as_in_the_twin(interleaved: bool, dim: int, half: int) -> None:
    wide, (cos, sin) = torch.randn(5, 7 * dim), angles(5, half)
    twin = wide.clone()
    rotate_torch(twin.view(5, 7, dim)[:, 1:4], cos, sin, interleaved=interleaved)
    rotate(wide.view(5, 7, dim)[:, 1:4], cos, sin, interleaved=interleaved)
    assert torch.equal(wide, twin)  # two products and a sum, in one order everywhere


@pytest.mark.usefixtures("variant")
def test_angles_may_lie_apart() -> None:
    x, (cos, sin) = torch.randn(5, 3, 12), angles(5, 12)
    apart = x.clone()
    rotate(x, cos[:, :6], sin[:, 6:])
    rotate(apart, cos[:, :6].contiguous(), sin[:, 6:].contiguous())
    assert torch.equal(x, apart)


def test_a_row_is_the_same_in_any_batch(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x, (cos, sin) = torch.randn(100, 9, 64), angles(100, 32)
    alone = x.clone()
    for i in range(100):
        rotate(alone[i : i + 1], cos[i : i + 1], sin[i : i + 1])
    for threads in THREADS:
        native.set_num_threads(threads)
        together = x.clone()
        rotate(together, cos, sin)
        assert torch.equal(together, alone)
