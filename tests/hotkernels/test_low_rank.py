"""Low-rank updates of many adapters in one call, and in the call of the product that they change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.linear import NATIVE_LINEAR_UPDATED, PackedWeight, StoredWeight, linear, pack
from hotkernels.low_rank import (
    LowRankFactors,
    LowRankMaps,
    LowRankRows,
    LowRankTable,
    add_low_rank,
    add_low_rank_torch,
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


ALONE = LowRankMaps([(0, 0)])
Update = tuple[int, int, Tensor, Tensor]  # rows start .. stop by factors a and b


def factors(rank: int, dtype: torch.dtype, out: int = OUT, *, as_saved: bool = True) -> tuple[Tensor, Tensor]:
    a = torch.randn(rank, IN).to(dtype).T
    return a if as_saved else a.contiguous(), torch.randn(rank, out).to(dtype)


def rows_of(updates: Sequence[Update]) -> LowRankRows:
    return LowRankRows([(LowRankTable([LowRankFactors(a, b)]), start, stop) for start, stop, a, b in updates])


def add(x: Tensor, y: Tensor, updates: Sequence[Update]) -> None:
    add_low_rank(x, y, ALONE, rows_of(updates))


def exact(x: Tensor, y: Tensor, updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """The result in fp64, and what its roundings are relative to."""
    y, size = y.double(), y.double().abs()
    for start, stop, a, b in updates:
        y[start:stop] += x[start:stop].double() @ a.double() @ b.double()
        size[start:stop] += x[start:stop].double().abs() @ a.double().abs() @ b.double().abs()
    return y, size


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3, 8, 16, 33, 130])
@pytest.mark.parametrize("as_saved", [True, False])
@pytest.mark.usefixtures("variant")
def test_updates_are_their_twin(name: str, dtype: torch.dtype, rank: int, *, as_saved: bool) -> None:
    updates = [(*rows, *factors(rank + i, dtype, as_saved=as_saved)) for i, rows in enumerate(SEGMENTS[name])]
    x, y = torch.randn(ROWS, IN), torch.randn(ROWS, OUT)
    wanted, size = exact(x, y, updates)
    add(x, y, updates)
    # one rounding for every term of either sum, and of their sum
    assert bool(((y - wanted).abs() <= (IN + rank + 8) * 2**-24 * size).all())


@pytest.mark.parametrize("rank", [1, 8, 20, 64])
@pytest.mark.parametrize("as_saved", [True, False])
def test_a_row_is_the_same_in_any_batch(variant: str, rank: int, *, as_saved: bool) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    a, b = factors(rank, torch.float32, as_saved=as_saved)
    x, before = torch.randn(70, IN), torch.randn(70, OUT)
    alone = before.clone()
    for i in range(len(x)):
        add(x[i : i + 1], alone[i : i + 1], [(0, 1, a, b)])
    for threads in THREADS:
        native.set_num_threads(threads)
        for bounds in ([0, 70], [0, 1, 3, 40, 70], [0, 2, 9, 26, 70]):
            y = before.clone()
            add(x, y, [(*rows, a, b) for rows in pairwise(bounds)])
            assert torch.equal(y, alone)


def test_columns_are_shared_out_without_a_trace(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    a, b = torch.randn(257, 600).T, torch.randn(257, 1100)
    x, results = torch.randn(2, 600), []
    for threads in THREADS:
        native.set_num_threads(threads)
        results.append(torch.zeros(2, 1100))
        add(x, results[-1], [(0, 2, a, b)])
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("as_saved", [True, False])
def test_rows_may_lie_apart_and_others_stay(variant: str, *, as_saved: bool) -> None:
    if variant == native.TORCH and as_saved:
        pytest.skip("torch's products of transposed matrices depend on how the rows lie")
    wide_x, wide_y = torch.randn(9, 2 * IN), torch.randn(9, 2 * OUT)
    before, updates = wide_y.clone(), [(2, 7, *factors(5, torch.bfloat16, as_saved=as_saved))]
    y = wide_y[:, 10 : 10 + OUT].contiguous()
    add(wide_x[:, 3 : 3 + IN], wide_y[:, 10 : 10 + OUT], updates)
    add(wide_x[:, 3 : 3 + IN].contiguous(), y, updates)
    assert torch.equal(wide_y[:, 10 : 10 + OUT], y)
    wide_y[2:7, 10 : 10 + OUT] = before[2:7, 10 : 10 + OUT]
    assert torch.equal(wide_y, before)


def joined() -> tuple[LowRankMaps, LowRankRows, list[tuple[slice, list[Update]]]]:
    """Two maps side by side, and adapters of both, the first, the last and neither; the same by column, map by map."""
    q, k = factors(8, torch.float32, 40), factors(3, torch.float16, 24)
    tables = [
        LowRankTable([None, LowRankFactors(*k), LowRankFactors(*q)]),
        LowRankTable([]),
        LowRankTable([None, None, LowRankFactors(*q)]),
        LowRankTable([LowRankFactors(*q), LowRankFactors(*k)]),
    ]
    rows = LowRankRows([(tables[2], 0, 2), (tables[1], 2, 3), (tables[3], 3, 4), (tables[0], 4, 7)])
    apart: list[tuple[slice, list[Update]]] = [
        (slice(0, 40), [(0, 2, *q), (4, 7, *q)]),
        (slice(40, 64), [(3, 4, *k), (4, 7, *k)]),
    ]
    return LowRankMaps([(2, 0), (1, 40)]), rows, apart


@pytest.mark.usefixtures("variant")
def test_maps_that_are_computed_in_one_are_updated_in_one() -> None:
    maps, rows, apart = joined()
    x, y = torch.randn(7, IN), torch.randn(7, 64)
    wanted, twin = y.clone(), y.clone()
    add_low_rank(x, y, maps, rows)
    for columns, updates in apart:
        add(x, wanted[:, columns], updates)
    assert torch.equal(y, wanted)
    add_low_rank_torch(x, twin, maps, rows)
    torch.testing.assert_close(y, twin, rtol=0, atol=IN * 2**-24 * 200)


WEIGHTS = {
    "codes": lambda: StoredWeight(
        torch.randint(0, 256, (64, 48), dtype=torch.uint8), torch.rand(64, 3).half(), torch.randn(64, 3).half()
    ),
    "codes of 8 bits": lambda: StoredWeight(torch.randint(-99, 99, (64, 96), dtype=torch.int8), torch.rand(64, 1)),
    "floats": lambda: StoredWeight(torch.randn(64, 96).bfloat16()),
}


def updated(x: Tensor, weight: PackedWeight, maps: LowRankMaps, rows: LowRankRows) -> Tensor:
    y = torch.full((len(x), weight.out_features), torch.nan)
    NATIVE_LINEAR_UPDATED(
        weight.address, x.data_ptr(), x.stride(0), len(x), None, y.data_ptr(), y.stride(0),
        maps.address, maps.count, rows.address, rows.count,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("count", [7, 150])
def test_a_products_own_call_updates_it_too(variant: str, name: str, count: int) -> None:
    if variant == native.TORCH:
        pytest.skip("two calls where torch does the work")
    weight, given = pack([WEIGHTS[name]()]), torch.randn(count, 96)
    maps = LowRankMaps([(2, 0), (1, 40)])
    f = [LowRankFactors(torch.randn(96, r), torch.randn(r, n)) for r, n in ((8, 40), (3, 24), (70, 40))]
    tables = [LowRankTable([None, f[1], f[0]]), LowRankTable([None, f[1], f[2]]), LowRankTable([])]
    rows = LowRankRows([(tables[0], 0, 1), (tables[1], 1, 3), (tables[2], 3, 4), (tables[0], 4, count)])
    for threads in THREADS:
        native.set_num_threads(threads)
        wanted = linear(given, weight)
        add_low_rank(given, wanted, maps, rows)
        assert torch.equal(updated(given, weight, maps, rows), wanted)
    assert torch.equal(updated(given, weight, maps, LowRankRows([])), linear(given, weight))


@pytest.mark.usefixtures("variant")
def test_no_rows_and_no_rank_are_no_update() -> None:
    x, y = torch.randn(3, IN), torch.randn(3, OUT)
    before = y.clone()
    add(x, y, [])
    add(x, y, [(1, 1, *factors(4, torch.float32)), (0, 2, *factors(0, torch.float32))])
    assert torch.equal(y, before)


@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_spoil_their_own_row_only() -> None:
    x, y = torch.randn(8, IN), torch.zeros(8, OUT)
    updates = [(0, 8, *factors(8, torch.float32))]
    x[3, 5] = torch.nan
    add(x, y, updates)
    assert bool(y[3].isnan().all())
    assert bool(y[[0, 1, 2, 4, 5, 6, 7]].isfinite().all())


@pytest.mark.usefixtures("variant")
def test_every_half_precision_number_is_read_exactly() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        numbers = numbers[numbers.isfinite()]
        y = torch.zeros(1, len(numbers))
        add(torch.ones(1, 1), y, [(0, 1, torch.ones(1, 1), numbers[None].contiguous())])
        assert torch.equal(y[0], numbers.float())


@pytest.mark.usefixtures("variant")
def test_rows_of_other_types_are_rounded_to_them_at_the_end() -> None:
    x, y = torch.randn(4, IN).bfloat16(), torch.randn(4, OUT).bfloat16()
    twin, updates = y.clone(), [(1, 3, *factors(4, torch.bfloat16))]
    add(x, y, updates)
    add_low_rank_torch(x, twin, ALONE, rows_of(updates))
    torch.testing.assert_close(y, twin, rtol=2**-7, atol=0.2)  # the twin rounds the update before it adds it
    assert torch.equal(y[[0, 3]], twin[[0, 3]])
