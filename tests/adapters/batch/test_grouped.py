"""The grouped kernels against the naive loop, over kind × rank × dtype × popularity × batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from adapters.batch.grouped import group_ops
from adapters.batch.reference import apply_reference
from adapters.batch.rows import MAX_PADDED_ROWS, Segment, plan_rows
from adapters.ops import Bias, LinearOp, LowRank

IN, OUT = 24, 40
# One rounding of the output type, on outputs of magnitude about 4, and the sums before it.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}
POPULARITY = {
    "identical": [9],
    "distinct": [1] * 9,
    "uniform": [3, 2, 3, 2],
    "zipf": [8, 4, 2, 1, 1],
    "skewed": [MAX_PADDED_ROWS + 30, 1, 1, 2],
    "all-long": [MAX_PADDED_ROWS + 1, MAX_PADDED_ROWS + 5],
}


def low_rank(rank: int, dtype: torch.dtype) -> LowRank:
    return LowRank(torch.randn(rank, IN, dtype=dtype) * 0.2, torch.randn(OUT, rank, dtype=dtype) * 0.2)


def ops_of(kind: str, rank: int, dtype: torch.dtype) -> tuple[LinearOp, ...]:
    bias = Bias(torch.randn(OUT, dtype=dtype))
    choices: dict[str, tuple[LinearOp, ...]] = {
        "low-rank": (low_rank(rank, dtype),),
        "bias": (bias,),
        "both": (low_rank(rank, dtype), bias),
    }
    return choices[kind]


def check(members: dict[object, tuple[LinearOp, ...]], sizes: Sequence[tuple[object, int]], dtype: torch.dtype) -> None:
    """Rows of ``sizes`` (member or None, rows) in that order, grouped against naive."""
    segments: list[Segment] = []
    ops: list[tuple[LinearOp, ...]] = []
    row = 0
    for member, size in sizes:
        if member is not None:
            segments.append(Segment(member, row, row + size))
        ops += [members.get(member, ())] * size
        row += size
    x, y = torch.randn(row, IN, dtype=dtype), torch.randn(row, OUT, dtype=dtype)
    want = apply_reference(x, y, ops)
    got = y.clone()
    for group in group_ops(members):
        group.apply(x, got, plan_rows(group.members, segments, x.device))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rank", [1, 8, 13])
@pytest.mark.parametrize("kind", ["low-rank", "bias", "both"])
def test_equal_ranks(kind: str, rank: int, dtype: torch.dtype, popularity: str) -> None:
    torch.manual_seed(0)
    sizes = list(enumerate(POPULARITY[popularity]))
    check({i: ops_of(kind, rank, dtype) for i, _ in sizes}, sizes, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mixed_ranks_with_base_rows_and_split_segments(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    members: dict[object, tuple[LinearOp, ...]] = {
        "a": ops_of("low-rank", 4, dtype),
        "b": ops_of("both", 4, dtype),
        "c": ops_of("low-rank", 16, dtype),
        "idle": ops_of("both", 4, dtype),
    }
    check(members, [(None, 2), ("a", 3), ("b", 20), (None, 1), ("c", 1), ("a", 2), ("b", 1)], dtype)


def test_no_rows_at_all() -> None:
    check({"a": ops_of("both", 4, torch.float32)}, [(None, 3)], torch.float32)


def test_other_rows_stay_bitwise_untouched() -> None:
    x, y = torch.randn(4, IN), torch.randn(4, OUT)
    before = y.clone()
    (group,) = group_ops({"a": ops_of("low-rank", 4, torch.float32), "b": ops_of("low-rank", 4, torch.float32)})
    group.apply(x, y, plan_rows(group.members, [Segment("a", 1, 2), Segment("b", 2, 3)], x.device))
    assert torch.equal(y[[0, 3]], before[[0, 3]])
    assert not torch.equal(y[[1, 2]], before[[1, 2]])


def test_ranks_are_never_padded() -> None:
    groups = group_ops({"a": ops_of("low-rank", 4, torch.float32), "b": ops_of("low-rank", 64, torch.float32)})
    assert sorted(g.a.shape[-1] for g in groups if hasattr(g, "a")) == [4, 64]
