"""The op of the input embedding, whose rows are token ids, over dtype × popularity."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Embedding

from adapters.batch.grouped import group_ops
from adapters.batch.reference import apply_reference
from adapters.batch.rows import MAX_PADDED_ROWS, RowSegment, plan_rows
from adapters.ops import Op
from adapters.ops.activations import Magnitude
from adapters.ops.embedding import LowRankEmbedding
from tests.bounds import bound

pytestmark = pytest.mark.numeric

VOCAB, HIDDEN = 30, 24
# Numbers of magnitude 4; in bf16 the product, the sum and the scaled sum are rounded.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: bound(torch.bfloat16, length=3, scale=4.0)}


def low_rank(rank: int, dtype: torch.dtype) -> LowRankEmbedding:
    return LowRankEmbedding(torch.randn(VOCAB, rank, dtype=dtype), torch.randn(rank, HIDDEN, dtype=dtype) * 0.2)


@pytest.mark.parametrize("sizes", [[9], [1] * 5, [3, MAX_PADDED_ROWS + 9, 1]])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grouped_is_the_reference(dtype: torch.dtype, sizes: list[int]) -> None:
    torch.manual_seed(0)
    table = Embedding(VOCAB, HIDDEN, dtype=dtype).requires_grad_(False)
    members: dict[object, tuple[Op, ...]] = {i: (low_rank(4, dtype),) for i in range(len(sizes))}
    members[0] = (low_rank(2, dtype), Magnitude(torch.randn(HIDDEN, dtype=dtype) * 0.2))
    ids = torch.randint(VOCAB, (sum(sizes) + 1, 1))
    ids[0], ids[-1] = -1, VOCAB + 3  # virtual, and not in the base
    starts = [1 + sum(sizes[:i]) for i in range(len(sizes))]
    segments = [RowSegment(i, start, start + n) for i, (start, n) in enumerate(zip(starts, sizes, strict=True))]
    rows: list[tuple[Op, ...]] = [(), *(members[i] for i, n in enumerate(sizes) for _ in range(n))]
    want = apply_reference(lambda x: table(x[:, 0].clamp(0, VOCAB - 1)), ids, rows)
    y = table(ids[:, 0].clamp(0, VOCAB - 1))
    for group in group_ops(members).after:
        group.apply(ids, y, plan_rows(group.members, segments, ids.device))
    torch.testing.assert_close(y.float(), want, rtol=0, atol=TOLERANCE[dtype])


def test_tables_are_never_copied() -> None:
    ops = [low_rank(4, torch.float32) for _ in "ab"]
    groups = group_ops({i: (op,) for i, op in enumerate(ops)}).after
    assert len(groups) == 2
    found = {group.op.a.data_ptr() for group in groups if isinstance(group.op, LowRankEmbedding)}
    assert found == {op.a.data_ptr() for op in ops}
