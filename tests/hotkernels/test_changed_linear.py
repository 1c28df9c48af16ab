"""Linear maps of one input that is changed for some rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.changed_linear import ChangedLinear, LinearPart
from hotkernels.linear import PackedWeight, StoredWeight, pack
from hotkernels.row_ops import Affine, Rotation, RowOpRows, RowOpTable
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

IN, OUTS, ROWS = 64, (48, 16, 21), 20
SEGMENTS = {
    "none": [],
    "few": [(0, 1, 2), (1, 5, 8)],
    "many": [(0, 0, 13), (1, 14, 19)],
    "others": [(2, 3, 9)],  # change nothing here
}


def weights() -> tuple[PackedWeight, list[PackedWeight]]:
    """One weight, and the parts that it is made of."""
    joined = pack([StoredWeight(torch.randn(out, IN).bfloat16()) for out in OUTS])
    parts, start = [], 0
    for out in OUTS:
        parts.append(joined.rows(start, start + out))
        start += out
    return joined, parts


def tables() -> list[RowOpTable]:
    """Of three adapters: the first two change the inputs of two maps each."""
    gain, rotation = Affine(torch.randn(IN), None), Rotation(torch.randn(4, 16, 16) / 4)
    other = Affine(torch.randn(IN), torch.randn(IN))
    return [
        RowOpTable([[rotation], [], [gain]]),
        RowOpTable([[other, gain], [other]]),
        RowOpTable([[], [], [], [gain]]),
    ]


def maps(*, is_joined: bool, bias: Tensor | None) -> ChangedLinear:
    joined, parts = weights()
    biases = [None] * len(OUTS) if bias is None else list(torch.split(bias, list(OUTS)))
    listed = [LinearPart(i, part, b) for i, (part, b) in enumerate(zip(parts, biases, strict=True))]
    return ChangedLinear(listed, joined if is_joined else None, bias)


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.usefixtures("variant")
def test_products_are_their_twin(name: str, has_bias: bool, is_joined: bool) -> None:
    made, changes = maps(is_joined=is_joined, bias=torch.randn(sum(OUTS)) if has_bias else None), tables()
    rows = RowOpRows([(changes[table], start, stop) for table, start, stop in SEGMENTS[name]])
    wide = torch.randn(ROWS, 2 * IN)
    x, before = wide[:, 5 : 5 + IN], wide.clone()
    torch.testing.assert_close(made(x, rows), made.twin(x, rows), rtol=1e-5, atol=1e-4)
    assert torch.equal(wide, before)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_is_the_same_in_any_batch(variant: str, has_bias: bool) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    torch.manual_seed(0)
    bias, changes, x = torch.randn(sum(OUTS)) if has_bias else None, tables(), torch.randn(ROWS, IN)
    torch.manual_seed(1)
    made = maps(is_joined=True, bias=bias)
    torch.manual_seed(1)
    apart = maps(is_joined=False, bias=bias)
    for table in (0, 1):
        alone = torch.cat([made(x[i : i + 1], RowOpRows([(changes[table], 0, 1)])) for i in range(ROWS)])
        for threads in THREADS:
            native.set_num_threads(threads)
            for start, stop in ((0, 20), (3, 4), (2, 9), (1, 19)):
                rows = RowOpRows([(changes[1 - table], 0, start), (changes[table], start, stop)])
                for one in (made, apart):
                    assert torch.equal(one(x, rows)[start:stop], alone[start:stop])


@pytest.mark.usefixtures("variant")
def test_numbers_that_are_none_spoil_their_own_row_only() -> None:
    made, x = maps(is_joined=True, bias=None), torch.randn(9, IN)
    x[4, 2] = torch.nan
    y = made(x, RowOpRows([(tables()[1], 3, 6)]))
    assert bool(y[4].isnan().any())
    assert bool(y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all())
