"""Low-rank updates of many adapters in one call."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.low_rank import (
    LowRankFactors,
    LowRankRows,
    LowRankTable,
    add_low_rank,
    add_low_rank_torch,
    row_segments,
)
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEGMENTS = {
    "decode": [(0, 1), (1, 2), (4, 6), (6, 7)],
    "prefill": [(0, 37)],
    "mixed": [(0, 1), (2, 33), (33, 36), (39, 40)],
}
IN, OUT, ROWS = 77, 51, 40


def factors(rank: int, dtype: torch.dtype, out: int = OUT) -> tuple[Tensor, Tensor]:
    return torch.randn(IN, rank).to(dtype), torch.randn(rank, out).to(dtype)


def exact(x: Tensor, y: Tensor, updates: list[LowRankRows]) -> tuple[Tensor, Tensor]:
    """The result in fp64, and what its roundings are relative to."""
    y, size = y.double(), y.double().abs()
    for rows in updates:
        part = slice(rows.start, rows.stop)
        y[part] += x[part].double() @ rows.a.double() @ rows.b.double()
        size[part] += x[part].double().abs() @ rows.a.double().abs() @ rows.b.double().abs()
    return y, size


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3, 8, 16, 33, 130])
@pytest.mark.usefixtures("variant")
def test_updates_are_their_twin(name: str, dtype: torch.dtype, rank: int) -> None:
    updates = [LowRankRows(*rows, *factors(rank + i, dtype)) for i, rows in enumerate(SEGMENTS[name])]
    x, y = torch.randn(ROWS, IN), torch.randn(ROWS, OUT)
    wanted, size = exact(x, y, updates)
    add_low_rank(x, y, updates)
    # one rounding for every term of either sum, and of their sum
    assert bool(((y - wanted).abs() <= (IN + rank + 8) * 2**-24 * size).all())


@pytest.mark.parametrize("rank", [1, 8, 20, 64])
def test_a_row_is_the_same_in_any_batch(variant: str, rank: int) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    a, b = factors(rank, torch.float32)
    x, before = torch.randn(70, IN), torch.randn(70, OUT)
    alone = before.clone()
    for i in range(len(x)):
        add_low_rank(x[i : i + 1], alone[i : i + 1], [LowRankRows(0, 1, a, b)])
    for threads in THREADS:
        native.set_num_threads(threads)
        for bounds in ([0, 70], [0, 1, 3, 40, 70], [0, 2, 9, 26, 70]):
            y = before.clone()
            add_low_rank(x, y, [LowRankRows(*rows, a, b) for rows in pairwise(bounds)])
            assert torch.equal(y, alone)


def test_columns_are_shared_out_without_a_trace(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    a, b = torch.randn(600, 257), torch.randn(257, 1100)
    x, results = torch.randn(2, 600), []
    for threads in THREADS:
        native.set_num_threads(threads)
        results.append(torch.zeros(2, 1100))
        add_low_rank(x, results[-1], [LowRankRows(0, 2, a, b)])
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.usefixtures("variant")
def test_rows_may_lie_apart_and_others_stay() -> None:
    wide_x, wide_y = torch.randn(9, 2 * IN), torch.randn(9, 2 * OUT)
    before, updates = wide_y.clone(), [LowRankRows(2, 7, *factors(5, torch.bfloat16))]
    y = wide_y[:, 10 : 10 + OUT].contiguous()
    add_low_rank(wide_x[:, 3 : 3 + IN], wide_y[:, 10 : 10 + OUT], updates)
    add_low_rank(wide_x[:, 3 : 3 + IN].contiguous(), y, updates)
    assert torch.equal(wide_y[:, 10 : 10 + OUT], y)
    wide_y[2:7, 10 : 10 + OUT] = before[2:7, 10 : 10 + OUT]
    assert torch.equal(wide_y, before)


@pytest.mark.usefixtures("variant")
def test_a_table_updates_maps_that_are_computed_in_one() -> None:
    q, k = factors(8, torch.float32, 40), factors(3, torch.float16, 11)
    table = LowRankTable([[LowRankFactors(*k, column=40), LowRankFactors(*q)], [], [LowRankFactors(*q)]])
    x, y = torch.randn(7, IN), torch.randn(7, OUT)
    apart = y.clone()
    table.add(x, y, row_segments([(2, 0, 2), (1, 2, 3), (0, 4, 7)]))
    add_low_rank(x, apart[:, :40], [LowRankRows(0, 2, *q), LowRankRows(4, 7, *q)])
    add_low_rank(x, apart[:, 40:], [LowRankRows(4, 7, *k)])
    assert torch.equal(y, apart)


@pytest.mark.usefixtures("variant")
def test_no_rows_and_no_rank_are_no_update() -> None:
    x, y = torch.randn(3, IN), torch.randn(3, OUT)
    before = y.clone()
    add_low_rank(x, y, [])
    add_low_rank(x, y, [LowRankRows(1, 1, *factors(4, torch.float32)), LowRankRows(0, 2, *factors(0, torch.float32))])
    assert torch.equal(y, before)


@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_spoil_their_own_row_only() -> None:
    x, y = torch.randn(8, IN), torch.zeros(8, OUT)
    updates = [LowRankRows(0, 8, *factors(8, torch.float32))]
    x[3, 5] = torch.nan
    add_low_rank(x, y, updates)
    assert bool(y[3].isnan().all())
    assert bool(y[[0, 1, 2, 4, 5, 6, 7]].isfinite().all())


@pytest.mark.usefixtures("variant")
def test_every_half_precision_number_is_read_exactly() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        numbers = numbers[numbers.isfinite()]
        y = torch.zeros(1, len(numbers))
        add_low_rank(torch.ones(1, 1), y, [LowRankRows(0, 1, torch.ones(1, 1), numbers[None].contiguous())])
        assert torch.equal(y[0], numbers.float())


@pytest.mark.usefixtures("variant")
def test_rows_of_other_types_are_rounded_to_them_at_the_end() -> None:
    x, y = torch.randn(4, IN).bfloat16(), torch.randn(4, OUT).bfloat16()
    twin, updates = y.clone(), [LowRankRows(1, 3, *factors(4, torch.bfloat16))]
    add_low_rank(x, y, updates)
    add_low_rank_torch(x, twin, updates)
    torch.testing.assert_close(y, twin, rtol=2**-7, atol=0.2)  # the twin rounds the update before it adds it
    assert torch.equal(y[[0, 3]], twin[[0, 3]])
