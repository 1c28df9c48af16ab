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
from hotkernels import native
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

EQUAL = sorted(set(CASES) - {"replace parameters"})  # which computes by the base's own module


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
    members: dict[object, tuple[Op, ...]] = {
        "a": CASES["low-rank-1"](torch.float32),
        "b": CASES["low-rank-13"](torch.float32),
    }
    with native.using(native.TORCH):
        groups = group_ops(members).after
    assert sorted(g.op.rank for g in groups if isinstance(g.op, LowRank)) == [1, 13]


@pytest.mark.skipif(native.variant() == native.TORCH, reason="nothing native is here")
def test_any_ranks_are_one_native_call_without_a_copy() -> None:
    members: dict[object, tuple[Op, ...]] = {
        name: CASES[f"low-rank-{rank}"](torch.float32) for name, rank in (("a", 1), ("b", 13), ("c", 8))
    }
    (group,) = group_ops(members).after
    assert group.members == ("a", "b", "c")
    assert group.copied == 0


@pytest.mark.skipif(native.variant() == native.TORCH, reason="torch promises no such thing")
@pytest.mark.parametrize("case", EQUAL)
def test_a_row_is_the_same_beside_any_others(case: str) -> None:
    """Bit for bit: alone, in a run of rows of its own, and among rows of another member."""
    torch.manual_seed(0)
    members: dict[object, tuple[Op, ...]] = {name: CASES[case](torch.float32) for name in "ab"}
    base, x = Linear(IN, OUT).requires_grad_(False), torch.randn(2 * MAX_PADDED_ROWS + 9, IN)
    outputs = torch.cat([base(row[None]) for row in x])

    def computed(rows: slice, *segments: RowSegment) -> torch.Tensor:
        given, groups = x[rows].clone(), group_ops(members)
        for group in groups.before:
            group.apply(given, given, plan_rows(group.members, segments, x.device), StockSite(base))
        y = outputs[rows].clone()
        for group in groups.after:
            group.apply(x[rows], y, plan_rows(group.members, segments, x.device), StockSite(base))
        return torch.cat([given, y], 1)

    alone = torch.cat([computed(slice(i, i + 1), RowSegment("a", 0, 1)) for i in range(len(x))])
    everything = slice(0, len(x))
    assert torch.equal(computed(everything, RowSegment("a", 0, len(x))), alone)
    mixed = computed(everything, *(RowSegment("ab"[i % 2], i, i + 1) for i in range(len(x))))
    assert torch.equal(mixed[::2], alone[::2])


def test_a_lone_members_stack_is_no_copy() -> None:
    (op,) = CASES["low-rank-8"](torch.float32)
    (group,) = group_ops({"a": (op,)}).after
    assert isinstance(op, LowRank)
    assert isinstance(group.op, LowRank)
    assert group.op.a.data_ptr() == op.a.data_ptr()
