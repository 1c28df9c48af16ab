"""Norms of rows."""

from __future__ import annotations

import pytest
import torch

from kernels import native
from kernels.norm import rms_norm, rms_norm_torch
from tests.kernels.conftest import THREADS

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("size", [1, 7, 64, 577])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.usefixtures("variant")
def test_rms_norm_is_its_twin(size: int, offset: float) -> None:
    x, weight = torch.randn(9, size), torch.randn(size)
    exact = rms_norm_torch(x, weight, 1e-5, offset=offset)
    # a sum of n squares in fp32, and four roundings
    torch.testing.assert_close(rms_norm(x, weight, 1e-5, offset=offset), exact, rtol=(size + 8) * 2**-24, atol=1e-7)


def test_a_row_is_the_same_in_any_batch(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x, weight = torch.randn(40, 577), torch.randn(577)
    alone = torch.cat([rms_norm(row[None], weight, 1e-6) for row in x])
    for threads in THREADS:
        native.set_num_threads(threads)
        assert torch.equal(rms_norm(x, weight, 1e-6), alone)


@pytest.mark.usefixtures("variant")
def test_rows_may_lie_apart() -> None:
    wide, weight = torch.randn(5, 50), torch.randn(20)
    assert torch.equal(rms_norm(wide[:, 10:30], weight, 1e-6), rms_norm(wide[:, 10:30].contiguous(), weight, 1e-6))
