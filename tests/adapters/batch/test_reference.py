from __future__ import annotations

import torch

from adapters.batch.reference import apply_reference
from adapters.ops import Bias, LowRank


def test_each_row_gets_its_own_ops_and_inputs_stay() -> None:
    x, weight = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(5, 4, dtype=torch.bfloat16)
    kept, y = x.clone(), x @ weight.T
    low = LowRank(torch.randn(4, 2), torch.randn(2, 5))
    bias = Bias(torch.randn(5))
    out = apply_reference(lambda rows: rows @ weight.T, x, [(), (low,), (low, bias)])
    delta = x.float() @ low.a @ low.b
    expected = torch.stack([y[0].float(), y[1].float() + delta[1], y[2].float() + delta[2] + bias.delta])
    torch.testing.assert_close(out, expected)
    assert out.dtype == torch.float32
    assert torch.equal(x, kept)
