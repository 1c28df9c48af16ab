"""Updates that are whole matrices, in the smaller form that they may have."""

from __future__ import annotations

import torch

from adapters.kinds.dense import factored
from adapters.ops import LowRank
from adapters.ops.matrices import Delta


def test_the_lighter_form_is_kept() -> None:
    left, right = torch.randn(30, 4), torch.randn(4, 20)
    assert isinstance(factored(left, right), LowRank)
    dense = factored(torch.randn(30, 13), torch.randn(13, 20))
    assert isinstance(dense, Delta)
    assert dense.weight.shape == (20, 30)
