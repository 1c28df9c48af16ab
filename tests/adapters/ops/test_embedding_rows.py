"""Rows of single tokens at the embedding, whose input rows are token ids, over dtype × popularity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Embedding

from adapters.batch.grouped import group_ops
from adapters.batch.reference import apply_reference
from adapters.batch.rows import MAX_PADDED_ROWS, RowSegment, plan_rows
from adapters.ops import Op
from adapters.ops.embedding import EmbedRows, HeadRows
from adapters.ops.replace import ReplaceLinear, ReplaceParameters
from tests.adapters.support import StockSite

pytestmark = pytest.mark.numeric

VOCAB, HIDDEN = 30, 24


class ScaledEmbedding(Embedding):
    """As gemma's: what is looked up is scaled."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3


def rows(ids: list[int], dtype: torch.dtype) -> EmbedRows:
    return EmbedRows(torch.tensor(ids), torch.randn(len(ids), HIDDEN, dtype=dtype))


@pytest.mark.parametrize("sizes", [[9], [1] * 5, [3, MAX_PADDED_ROWS + 9, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_is_the_reference(dtype: torch.dtype, sizes: list[int]) -> None:
    torch.manual_seed(0)
    table = ScaledEmbedding(VOCAB, HIDDEN, dtype=dtype).requires_grad_(False)
    members: dict[object, tuple[Op, ...]] = {
        i: (rows([0, 3 + i, VOCAB - 1, VOCAB + i], dtype),) for i in range(len(sizes))
    }
    members[0] = (ReplaceParameters({"weight": torch.randn(VOCAB + 9, HIDDEN, dtype=dtype)}), rows([2, 4], dtype))
    count = sum(sizes)
    ids = torch.cat([torch.tensor([-1]), torch.arange(count) % 6, torch.tensor([VOCAB + 3])])[:, None]
    ids[1::3] = VOCAB + 1
    starts = [1 + sum(sizes[:i]) for i in range(len(sizes))]
    segments = [RowSegment(i, start, start + n) for i, (start, n) in enumerate(zip(starts, sizes, strict=True))]
    given: list[tuple[Op, ...]] = [(), *(members[i] for i, n in enumerate(sizes) for _ in range(n)), ()]
    want = apply_reference(lambda x: table(x[:, 0].clamp(0, VOCAB - 1)), ids, given, StockSite(table.float()))
    table.to(dtype)
    y = table(ids[:, 0].clamp(0, VOCAB - 1))
    for group in group_ops(members).after:
        group.apply(ids, y, plan_rows(group.members, segments, ids.device), StockSite(table))
    torch.testing.assert_close(y.float(), want, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)


def test_tokens_beyond_the_base_widen_the_head() -> None:
    op = HeadRows(torch.tensor([2, 5]), torch.randn(2, HIDDEN))
    x, y = torch.randn(HIDDEN), torch.randn(4)
    got = op.reference(x, y, None)
    assert got.shape == (6,)
    assert got[4] == -torch.inf
    assert torch.equal(got[[0, 1, 3]], y[[0, 1, 3]])
    torch.testing.assert_close(got[[2, 5]], op.rows @ x)
    wide = op.stack([op]).batched(x[None, None], torch.cat([y, torch.zeros(4)])[None, None], None)[0, 0]
    torch.testing.assert_close(wide[[0, 1, 2, 3, 5]], got[[0, 1, 2, 3, 5]])


@pytest.mark.parametrize("size", [4, 9])
def test_a_whole_head_may_have_another_size(size: int) -> None:
    op = ReplaceLinear(torch.randn(size, HIDDEN), torch.randn(size))
    x, y = torch.randn(1, 3, HIDDEN), torch.randn(1, 3, 9)
    got = op.stack([op]).batched(x, y, None)
    assert got.shape == y.shape
    torch.testing.assert_close(got[0, 1, :size], op.reference(x[0, 1], y[0, 1], None))
