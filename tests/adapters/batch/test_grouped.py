"""The grouped kernels against the naive loop, over op × rank × dtype × popularity × batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn import Linear

from adapters.batch.grouped import group_ops
from adapters.batch.reference import apply_reference
from adapters.batch.rows import MAX_PADDED_ROWS, RowSegment, plan_rows
from adapters.ops import LowRank, Op
from tests.adapters.ops.cases import CASES, IN, OUT
from tests.adapters.support import StockSite

pytestmark = pytest.mark.numeric

# Roundings of the output type, on outputs of magnitude about 4, and the sums before it.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-1}
POPULARITY = {
    "identical": [9],
    "distinct": [1] * 9,
    "uniform": [3, 2, 3, 2],
    "zipf": [8, 4, 2, 1, 1],
    "skewed": [MAX_PADDED_ROWS + 30, 1, 1, 2],
    "all-long": [MAX_PADDED_ROWS + 1, MAX_PADDED_ROWS + 5],
}


def check(members: dict[object, tuple[Op, ...]], sizes: Sequence[tuple[object, int]], dtype: torch.dtype) -> None:
    """Rows of ``sizes`` (member or None, rows) in that order, grouped against naive."""
    linear = Linear(IN, OUT).requires_grad_(False)
    given = Linear(IN, OUT, dtype=dtype).requires_grad_(False)
    given.load_state_dict(linear.state_dict())
    linear.load_state_dict(given.state_dict())  # the same numbers, in fp32
    segments: list[RowSegment] = []
    ops: list[tuple[Op, ...]] = []
    row = 0
    for member, size in sizes:
        if member is not None:
            segments.append(RowSegment(member, row, row + size))
        ops += [members.get(member, ())] * size
        row += size
    x = torch.randn(row, IN, dtype=dtype)
    want = apply_reference(linear, x.float(), ops, StockSite(linear))
    groups = group_ops(members)
    changed = x.clone()
    for group in groups.before:
        group.apply(changed, changed, plan_rows(group.members, segments, x.device), StockSite(given))
    got = given(changed)
    for group in groups.after:
        group.apply(x, got, plan_rows(group.members, segments, x.device), StockSite(given))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("popularity", POPULARITY)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_one_op(case: str, dtype: torch.dtype, popularity: str) -> None:
    torch.manual_seed(0)
    sizes = list(enumerate(POPULARITY[popularity]))
    check({i: CASES[case](dtype) for i, _ in sizes}, sizes, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_all_ops_with_base_rows_and_split_segments(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    members: dict[object, tuple[Op, ...]] = {name: make(dtype) for name, make in CASES.items()}
    members |= {f"other {name}": make(dtype) for name, make in CASES.items()}
    names = list(members)
    sizes: list[tuple[object, int]] = [(None, 2)]
    for i, name in enumerate(names[:-2]):  # the last two stay idle
        sizes += [(name, 1 + i % 3), (None, i % 2)]
    sizes += [(names[0], MAX_PADDED_ROWS + 12), (names[1], 2)]
    check(members, sizes, dtype)


@pytest.mark.parametrize("case", CASES)
def test_no_rows_at_all(case: str) -> None:
    check({"a": CASES[case](torch.float32)}, [(None, 3)], torch.float32)


def test_other_rows_stay_bitwise_untouched() -> None:
    x, y = torch.randn(4, IN), torch.randn(4, OUT)
    before = y.clone()
    (group,) = group_ops({name: CASES["low-rank-8"](torch.float32) for name in "ab"}).after
    group.apply(x, y, plan_rows(group.members, [RowSegment("a", 1, 2), RowSegment("b", 2, 3)], x.device))
    assert torch.equal(y[[0, 3]], before[[0, 3]])
    assert not torch.equal(y[[1, 2]], before[[1, 2]])


def test_ranks_are_never_padded() -> None:
    groups = group_ops({"a": CASES["low-rank-1"](torch.float32), "b": CASES["low-rank-13"](torch.float32)}).after
    assert sorted(g.op.rank for g in groups if isinstance(g.op, LowRank)) == [1, 13]


def test_a_lone_members_stack_is_no_copy() -> None:
    (op,) = CASES["low-rank-8"](torch.float32)
    (group,) = group_ops({"a": (op,)}).after
    assert isinstance(op, LowRank)
    assert isinstance(group.op, LowRank)
    assert group.op.a.data_ptr() == op.a.data_ptr()
