"""Expert updates against the naive loop, and the routing they run on."""

from __future__ import annotations

import pytest
import torch

from adapters.ops.routed_experts import ExpertLowRank, Routed, expert_product

pytestmark = pytest.mark.numeric

EXPERTS, IN, OUT, RANK = 5, 16, 24, 8
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-1}


def make(dtype: torch.dtype) -> ExpertLowRank:
    torch.manual_seed(0)
    a, b = torch.randn(EXPERTS, IN, RANK, dtype=dtype), torch.randn(EXPERTS, RANK, OUT, dtype=dtype)
    return ExpertLowRank(a * 0.2, b * 0.2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("experts", [[0], [4], [2, 2, 2], [0, 1, 2, 3, 4], [1, 1, 3, 3, 3, 4]])
def test_against_the_naive_loop(experts: list[int], dtype: torch.dtype) -> None:
    op = make(dtype)
    x, y = torch.randn(len(experts), IN, dtype=dtype), torch.randn(len(experts), OUT, dtype=dtype)
    rows = [
        op.reference(row.float(), out.float(), Routed(torch.tensor(expert)))
        for row, out, expert in zip(x, y, experts, strict=True)
    ]
    got = ExpertLowRank.stack([op]).batched(x[None], y[None], Routed(torch.tensor(experts)))[0]
    torch.testing.assert_close(got.float(), torch.stack(rows), rtol=0, atol=TOLERANCE[dtype])


def test_products_reach_their_own_expert_only() -> None:
    weight = torch.zeros(EXPERTS, IN, OUT)
    weight[3] = 1.0
    product = expert_product(torch.ones(4, IN), weight, torch.tensor([0, 2, 3, 4]))
    assert product.sum(-1).tolist() == [0.0, 0.0, IN * OUT, 0.0]
