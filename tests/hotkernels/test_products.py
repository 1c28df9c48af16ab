"""Products of a stack of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.products import block_matmul, matmul, weighted_rows, weighted_rows_torch
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "size", "out"), [(1, 77, 5), (3, 20, 51), (37, 9, 700), (2, 1, 1)])
@pytest.mark.usefixtures("variant")
def test_products_are_their_twin(dtype: torch.dtype, rows: int, size: int, out: int) -> None:
    x, w = torch.randn(3, rows, size), torch.randn(3, size, out).to(dtype)
    bound = (size + 2) * 2**-24 * (x.double().abs() @ w.double().abs())
    for laid_out in (w, w.mT.contiguous().mT):
        assert bool(((matmul(x, laid_out) - x.double() @ w.double()).abs() <= bound).all())


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("out", [1, 3, 16, 40, 530])
def test_a_row_is_the_same_in_any_batch(variant: str, out: int, is_transposed: bool) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x, w = torch.randn(2, 23, 130), torch.randn(2, out, 130).mT if is_transposed else torch.randn(2, 130, out)
    alone = torch.cat([matmul(x[:, i : i + 1], w) for i in range(23)], 1)
    for threads in THREADS:
        native.set_num_threads(threads)
        assert torch.equal(matmul(x, w), alone)
        assert torch.equal(matmul(x[1:, 4:11], w[1:]), alone[1:, 4:11])


@pytest.mark.usefixtures("variant")
def test_a_corner_of_a_matrix_is_read_in_place() -> None:
    x, w = torch.randn(2, 3, 9), torch.randn(2, 20, 30)
    assert torch.equal(matmul(x, w[:, :9, :17]), matmul(x, w[:, :9, :17].contiguous()))
    shared = w[:1].expand(2, -1, -1)
    assert torch.equal(matmul(x, shared[:, :9]), matmul(x, shared[:, :9].contiguous()))
    across = w.mT[:, :9]
    assert torch.equal(matmul(x, across), matmul(x, across.mT.contiguous().mT))


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.usefixtures("variant")
def test_blocks_have_matrices_of_their_own(blocks: int) -> None:
    x, w = torch.randn(2, 5, 4, 6), torch.randn(2, blocks, 6, 3)
    wanted = torch.einsum("gnkb,gkbc->gnkc", x, w.expand(-1, 4, -1, -1))
    torch.testing.assert_close(block_matmul(x, w), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 7, 40])
@pytest.mark.usefixtures("variant")
def test_weighted_rows_are_their_twin(dtype: torch.dtype, columns: int) -> None:
    x, starts, inputs, values = sparse()
    x, values = x[:, :columns], values.to(dtype)
    wanted = weighted_rows_torch(x.double(), starts, inputs, values)
    torch.testing.assert_close(weighted_rows(x, starts, inputs, values).double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_weighted_column_is_the_same_beside_any_others(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    x, *matrix = sparse()
    alone = torch.cat([weighted_rows(x[:, i : i + 1], *matrix) for i in range(40)], 1)
    for threads in THREADS:
        native.set_num_threads(threads)
        assert torch.equal(weighted_rows(x, *matrix), alone)


def sparse() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = torch.randint(0, 9, (150,))
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    total = int(starts[-1])
    return torch.randn(30, 40), starts, torch.randint(30, (total,)).int(), torch.randn(total)
