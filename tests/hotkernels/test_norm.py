"""Norms of rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.norm import layer_norm, layer_norm_torch, rms_norm, rms_norm_torch
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

SIZES = [1, 7, 64, 577]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("variant")
def test_rms_norm_is_its_twin(size: int, offset: float, dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, size), torch.randn(size).to(dtype)
    exact = rms_norm_torch(x, weight, 1e-5, offset=offset)
    # a sum of n squares in fp32, and four roundings
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, offset=offset), exact, rtol=(size + 8) * 2**-24, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.usefixtures("variant")
def test_layer_norm_is_its_twin(size: int, dtype: torch.dtype, has_bias: bool) -> None:
    x, weight = torch.randn(9, size) + 2, torch.randn(size).to(dtype)
    bias = torch.randn(size).to(dtype) if has_bias else None
    exact = layer_norm_torch(x.double(), weight, bias, 1e-5)
    # the mean's rounding is relative to the mean, not to what is left of a number without it
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), exact, rtol=(size + 8) * 2**-24, atol=5e-6)


def _rms(x: Tensor, residual: Tensor | None = None, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    weight = torch.linspace(0.5, 2, x.shape[-1])
    return rms_norm(x, weight, 1e-6, residual=residual, scale=scale, out=out)


def _layer(x: Tensor, residual: Tensor | None = None, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    weight = torch.linspace(0.5, 2, x.shape[-1])
    return layer_norm(x, weight, weight, 1e-6, residual=residual, scale=scale, out=out)


either = pytest.mark.parametrize("norm", [_rms, _layer])
Norm = Callable[..., Tensor]


@either
def test_a_row_is_the_same_in_any_batch(variant: str, norm: Norm) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x = torch.randn(90, 577)
    alone = torch.cat([norm(row[None]) for row in x])
    for threads in THREADS:
        native.set_num_threads(threads)
        assert torch.equal(norm(x), alone)


@either
@pytest.mark.usefixtures("variant")
def test_rows_may_lie_apart(norm: Norm) -> None:
    wide, out = torch.randn(5, 50), torch.zeros(5, 60)
    y = norm(wide[:, 10:31].contiguous())
    assert torch.equal(norm(wide[:, 10:31]), y)
    assert norm(wide[:, 10:31], out=out[:, 7:28]).data_ptr() == out[:, 7:28].data_ptr()
    assert torch.equal(out[:, 7:28], y)
    assert not out[:, :7].any()
    assert not out[:, 28:].any()


@either
@pytest.mark.usefixtures("variant")
def test_a_residual_takes_the_row_in_first(norm: Norm) -> None:
    x, wide = torch.randn(5, 37), torch.randn(5, 80)
    before, residual = wide.clone(), wide[:, 20:57]
    wanted = residual.double() + 0.25 * x.double()
    y = norm(x, residual, 0.25)
    torch.testing.assert_close(residual.double(), wanted, rtol=2**-22, atol=1e-7)
    assert torch.equal(y, norm(residual))
    wide[:, 20:57] = before[:, 20:57]
    assert torch.equal(wide, before)


@either
@pytest.mark.usefixtures("variant")
def test_a_row_may_be_replaced(norm: Norm) -> None:
    x = torch.randn(6, 37)
    y = norm(x)
    norm(x, out=x)
    assert torch.equal(x, y)


@pytest.mark.parametrize("shape", [(19,), (3, 19)])
@pytest.mark.usefixtures("variant")
def test_heads_are_normed_one_by_one(shape: tuple[int, ...]) -> None:
    wide, weight = torch.randn(4, 100), torch.randn(shape)
    before, heads = wide.clone(), wide[:, 5:62].view(4, 3, 19)
    alone = [rms_norm(heads[:, h], weight if len(shape) == 1 else weight[h], 1e-6, offset=1.0) for h in range(3)]
    rms_norm(heads, weight, 1e-6, offset=1.0, out=heads)
    assert torch.equal(heads, torch.stack(alone, 1))
    wide[:, 5:62] = before[:, 5:62]
    assert torch.equal(wide, before)


@either
@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_spoil_their_own_row_only(norm: Norm) -> None:
    x = torch.randn(4, 21)
    x[1, 20], x[2, 3] = torch.nan, torch.inf
    y = norm(x)
    assert bool(y[[0, 3]].isfinite().all())
    assert not bool(y[1].isfinite().any())
    assert bool(y[2, 3].isnan())
