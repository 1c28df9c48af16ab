"""What adapters of many kinds do to rows, in one call."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.low_rank import LowRankMaps
from hotkernels.row_ops import Affine, Kron, Rotation, RowOp, RowOpRows, RowOpTable, SharedLowRank, apply_row_ops
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IN, OUT, ROWS = 77 * 4, 51 * 4, 40
SEGMENTS = [(0, 1), (2, 33), (33, 36), (39, 40)]
CASES: dict[str, Callable[[], RowOp]] = {
    "gain": lambda: Affine(torch.randn(OUT), None),
    "constant": lambda: Affine(None, torch.randn(OUT)),
    "gain and constant": lambda: Affine(torch.randn(OUT), torch.randn(OUT)),
    "shared low-rank": lambda: SharedLowRank(
        torch.randn(IN + 3, 21) / 20, torch.randn(21, OUT + 5), torch.randn(21), torch.randn(OUT)
    ),
    "kron": lambda: Kron(torch.randn(17, 22) / 4, torch.randn(14, 12) / 4, None),
    "kron, factored": lambda: Kron(torch.randn(17, 22) / 4, torch.randn(14, 3) / 4, torch.randn(3, 12)),
    "blocks": lambda: Rotation(torch.randn(6, 34, 34) / 6),
    "blocks of odd size": lambda: Rotation(torch.randn(12, 17, 17) / 4),
    "one block for all": lambda: Rotation(torch.randn(1, 51, 51) / 7),
    "butterfly": lambda: Rotation(torch.randn(34, 6, 6), fold=2),
    "wide butterfly": lambda: Rotation(torch.randn(6, 34, 34), fold=3),
}
MOST = 500  # roundings of any case's longest chain


@pytest.fixture(params=CASES)
def op(request: pytest.FixtureRequest) -> RowOp:
    """One op of each sort, of tensors in fp32."""
    torch.manual_seed(0)
    return CASES[request.param]()


def stored(op: RowOp, dtype: torch.dtype) -> RowOp:
    """The op with its tensors in another type."""
    tensors = {name: value.to(dtype) for name, value in vars(op).items() if isinstance(value, Tensor)}
    return type(op)(**{**vars(op), **tensors})


def applied(ops: list[RowOp], x: Tensor, y: Tensor, segments: list[tuple[int, int]]) -> Tensor:
    """``y`` after the ops on the rows of all segments."""
    y, table = y.clone(), RowOpTable([ops])
    apply_row_ops(x, y, LowRankMaps([(0, 0)]), RowOpRows([(table, *rows) for rows in segments]))
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("variant")
def test_ops_are_their_twins(op: RowOp, dtype: torch.dtype) -> None:
    op = stored(op, dtype)
    x, y = torch.randn(ROWS, IN), torch.randn(ROWS, OUT)
    wanted = y.double()
    for start, stop in SEGMENTS:
        op.twin(x[start:stop].double(), wanted[start:stop])
    got = applied([op], x, y, SEGMENTS)
    assert not torch.equal(got[0], y[0])
    assert bool(((got - wanted).abs() <= MOST * 2**-24 * wanted.abs().max()).all())


def test_a_row_is_the_same_in_any_batch(op: RowOp, variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x, y = torch.randn(ROWS, IN), torch.randn(ROWS, OUT)
    alone = torch.cat([applied([op], x[i : i + 1], y[i : i + 1], [(0, 1)]) for i in range(ROWS)])
    for threads in THREADS:
        native.set_num_threads(threads)
        for bounds in ([0, 40], [0, 1, 3, 9, 40], [0, 2, 19, 40]):
            assert torch.equal(applied([op], x, y, list(pairwise(bounds))), alone)


def test_rows_may_lie_apart_and_others_stay(op: RowOp, variant: str) -> None:
    wide_x, wide_y = torch.randn(9, 2 * IN), torch.randn(9, 2 * OUT)
    before, x, y = wide_y.clone(), wide_x[:, 3 : 3 + IN], wide_y[:, 10 : 10 + OUT]
    wanted = applied([op], x.contiguous(), y.contiguous(), [(2, 7)])
    apply_row_ops(x, y, LowRankMaps([(0, 0)]), RowOpRows([(RowOpTable([[op]]), 2, 7)]))
    if variant == native.TORCH:  # whose products may add up in another order for other strides
        torch.testing.assert_close(y, wanted)
    else:
        assert torch.equal(y, wanted)
    wide_y[2:7, 10 : 10 + OUT] = before[2:7, 10 : 10 + OUT]
    assert torch.equal(wide_y, before)


@pytest.mark.usefixtures("variant")
def test_ops_act_one_after_another_and_adapters_on_their_own_rows() -> None:
    first, *others = (make() for make in CASES.values())
    x, y = torch.randn(7, IN), torch.randn(7, OUT)
    wanted = y.clone()
    for op in others:
        wanted[4:] = applied([op], x[4:], wanted[4:], [(0, 3)])
    wanted[:2] = applied([first], x[:2], y[:2], [(0, 2)])
    rows = [(RowOpTable([[], [first]]), 0, 2), (RowOpTable([[first]]), 2, 3), (RowOpTable([[], others]), 4, 7)]
    apply_row_ops(x, y, LowRankMaps([(1, 0)]), RowOpRows(rows))
    assert torch.equal(y, wanted)


@pytest.mark.usefixtures("variant")
def test_maps_that_are_computed_in_one_have_columns_of_their_own() -> None:
    kron, gain = CASES["kron"](), CASES["gain"]()
    x, y = torch.randn(5, IN), torch.randn(5, 2 * OUT)
    wanted = torch.cat([applied([kron], x, y[:, :OUT], [(1, 4)]), applied([gain], x, y[:, OUT:], [(1, 4)])], 1)
    apply_row_ops(
        x, y, LowRankMaps([(3, OUT), (0, 0), (5, 0)]), RowOpRows([(RowOpTable([[kron], [], [], [gain]]), 1, 4)])
    )
    assert torch.equal(y, wanted)


@pytest.mark.usefixtures("variant")
def test_columns_behind_an_ops_own_stay() -> None:
    x, y = torch.randn(3, IN), torch.randn(3, OUT + 7)
    for name in ("gain and constant", "shared low-rank", "kron"):
        op = CASES[name]()
        got = applied([op], x, y, [(0, 3)])
        assert torch.equal(got[:, OUT:], y[:, OUT:])
        assert torch.equal(got[:, :OUT], applied([op], x, y[:, :OUT].contiguous(), [(0, 3)]))


@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_spoil_their_own_row_only(op: RowOp) -> None:
    x, y = torch.randn(8, IN), torch.randn(8, OUT)
    x[3], y[3] = torch.nan, torch.nan
    got = applied([op], x, y, [(0, 8)])
    assert bool(got[3].isnan().all())
    assert bool(got[[0, 1, 2, 4, 5, 6, 7]].isfinite().all())


@pytest.mark.usefixtures("variant")
def test_rows_of_other_types_are_rounded_to_them_at_the_end(op: RowOp) -> None:
    x, y = torch.randn(4, IN).bfloat16(), torch.randn(4, OUT).bfloat16()
    wanted = y[1:3].float()
    op.twin(x[1:3].float(), wanted)
    got = applied([op], x, y, [(1, 3)])
    torch.testing.assert_close(got[1:3], wanted.bfloat16(), rtol=2**-6, atol=2**-6 * float(wanted.abs().max()))
    assert torch.equal(got[[0, 3]], y[[0, 3]])
