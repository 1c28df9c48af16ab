from __future__ import annotations

import torch

from adapters.batch.reference import apply_reference
from adapters.ops import Bias, LowRank


def test_each_row_gets_its_own_ops_and_inputs_stay() -> None:
    x, y = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(3, 5, dtype=torch.bfloat16)
    kept = x.clone(), y.clone()
    low = LowRank(torch.randn(2, 4), torch.randn(5, 2))
    bias = Bias(torch.randn(5))
    out = apply_reference(x, y, [(), (low,), (low, bias)])
    delta = x.float() @ (low.b @ low.a).T
    expected = torch.stack([y[0].float(), y[1].float() + delta[1], y[2].float() + delta[2] + bias.delta])
    torch.testing.assert_close(out, expected)
    assert out.dtype == torch.float32
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
