"""Products with packed weights, in every format."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.linear import NATIVE_LINEAR, PackedWeight, StoredWeight, linear, linear_torch, pack
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

_NF4 = "-1 -.6962 -.5251 -.3949 -.2844 -.1848 -.0911 0 .0796 .1609 .2461 .3379 .4407 .5626 .723 1"
NF4 = torch.tensor([float(number) for number in _NF4.split()])
# name: codes, scale, minimum, block (0: one a row)
FORMATS = {
    "float32": (torch.float32, None, None, 0),
    "bfloat16": (torch.bfloat16, None, None, 0),
    "float16": (torch.float16, None, None, 0),
    "q4_0": (torch.uint8, torch.float16, "centred", 32),
    "q4_1": (torch.uint8, torch.float16, "free", 32),
    "awq": (torch.uint8, torch.float32, "free", 128),
    "gptq": (torch.uint8, torch.bfloat16, None, 64),
    "nf4": (torch.uint8, torch.float32, "book", 64),
    "nf4 of half a row": (torch.uint8, torch.bfloat16, "book", 192),
    "q8_0": (torch.int8, torch.float16, None, 32),
    "int8 by row": (torch.int8, torch.float32, None, 0),
}
K = 384  # more than the library takes in one go
formats = pytest.mark.parametrize("name", FORMATS)


def make(name: str, n: int, k: int = K) -> StoredWeight:
    codes_type, scale_type, kind, block = FORMATS[name]
    if scale_type is None:
        return StoredWeight((torch.randn(n, k) / 8).to(codes_type))
    scale = (torch.rand(n, k // block if block else 1) / 8).to(scale_type)
    if codes_type == torch.int8:
        return StoredWeight(torch.randint(-128, 128, (n, k), dtype=torch.int8), scale / 16)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    minimum = {"centred": scale * -8, "free": torch.randn(scale.shape).to(scale_type)}.get(kind or "")
    return StoredWeight(codes, scale, minimum, NF4 if kind == "book" else None)


def bound(x: Tensor, weight: StoredWeight, *, words: bool) -> Tensor:
    """How far a native product may be off: fp32 sums, and where ``words`` are multiplied, their rounding."""
    dense, magnitude = weight.dense().double(), x.double().abs()
    total = magnitude @ dense.abs().T
    if weight.minimum is not None:  # code and minimum are added up apart
        minimum = weight.minimum.double().abs().repeat_interleave(x.shape[1] // weight.minimum.shape[1], 1)
        total = magnitude @ (dense.abs() + 2 * minimum).T
    error = (x.shape[1] + 8) * 2**-24 * total
    if weight.scale is None or not words:
        return error
    block, book = x.shape[1] // weight.scale.shape[1], weight.book is not None
    runs = [run for part in torch.split(x, block, -1) for run in torch.split(part, 32, -1)]
    most = torch.cat([run.abs().amax(-1, keepdim=True).expand_as(run) for run in runs], -1)
    counts = 2.0 ** (-12 if book else -14)  # of the largest: what a word of an activation counts at most
    error = error + most.double() * 0.51 * counts @ dense.abs().T
    if book:
        error = error + magnitude @ (weight.scale.double() * 0.51 / 8191).repeat_interleave(block, 1).T
    return error


def is_native(variant: str) -> bool:
    return variant != native.TORCH


@formats
@pytest.mark.parametrize(("rows", "n"), [(1, 16), (2, 1), (3, 37), (13, 64), (101, 48)])
def test_the_product_is_its_twin(variant: str, name: str, rows: int, n: int) -> None:
    stored, x, bias = make(name, n), torch.randn(rows, K), torch.randn(n)
    exact = x.double() @ stored.dense().double().T + bias
    error = (linear(x, pack([stored]), bias) - exact).abs()
    assert (error <= bound(x, stored, words=is_native(variant)) + 2e-6).all()


@pytest.mark.parametrize("k", [1, 2, 31, 45, 50, 257])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8 by row"])
def test_any_number_of_inputs(variant: str, name: str, k: int) -> None:
    stored, x = make(name, 19, k), torch.randn(5, k)
    error = (linear(x, pack([stored])) - x.double() @ stored.dense().double().T).abs()
    assert (error <= bound(x, stored, words=is_native(variant)) + 1e-9).all()


@pytest.mark.parametrize("k", [32, 64, 96, 160])
@pytest.mark.parametrize("name", ["q4_0", "q4_1"])
def test_many_rows_of_few_inputs(variant: str, name: str, k: int) -> None:
    stored, x = make(name, 40, k), torch.randn(45, k)
    weight = pack([stored])
    y = linear(x, weight)
    assert ((y - x.double() @ stored.dense().double().T).abs() <= bound(x, stored, words=is_native(variant))).all()
    if is_native(variant):
        assert torch.equal(y, torch.cat([linear(row[None], weight) for row in x]))


@pytest.mark.parametrize("largest", [1.0, 2 - 2**-16, 2 - 2**-15, 2 - 2**-14, 1e-20, 1e30])
def test_rounding_of_activations_of_any_size(variant: str, largest: float) -> None:
    """Up to the next power of two, where the largest would no longer be a word."""
    stored, x = make("q4_1", 40), (torch.rand(20, K) * 2 - 1) * largest
    x[:, ::32] = torch.tensor([largest, -largest]).repeat(10)[:, None]
    weight = pack([stored])
    y = linear(x, weight)
    assert ((y - x.double() @ stored.dense().double().T).abs() <= bound(x, stored, words=is_native(variant))).all()
    if is_native(variant):
        assert torch.equal(y, torch.cat([linear(row[None], weight) for row in x]))


@pytest.mark.parametrize("blocks", [1, 2])
def test_blocks_of_any_size(variant: str, blocks: int) -> None:
    scale, minimum = torch.rand(19, blocks), torch.randn(19, blocks)
    stored = StoredWeight(torch.randint(0, 256, (19, 50 * blocks), dtype=torch.uint8), scale, minimum)
    packed, x = pack([stored]), torch.randn(5, 100 * blocks)
    assert torch.equal(packed.dense(), stored.dense())
    error = (linear(x, packed) - x.double() @ stored.dense().double().T).abs()
    assert (error <= bound(x, stored, words=is_native(variant))).all()


@formats
def test_a_row_is_the_same_in_any_batch(variant: str, name: str) -> None:
    if not is_native(variant):
        pytest.skip("torch promises no such thing")
    weight, x, bias = pack([make(name, 72)]), torch.randn(203, K), torch.randn(72)
    alone = torch.cat([linear(row[None], weight, bias) for row in x])
    for threads in THREADS:
        native.set_num_threads(threads)
        for rows in (*range(2, 27), 100, 203):
            assert torch.equal(linear(x[:rows], weight, bias), alone[:rows]), rows
    assert torch.equal(linear(x[60:99], weight, bias), alone[60:99])


@formats
@pytest.mark.parametrize("rows", [1, 4, 30])
@pytest.mark.usefixtures("variant")
def test_rows_may_lie_apart(name: str, rows: int) -> None:
    weight, wide, out = pack([make(name, 37)]), torch.randn(rows, K + 9), torch.full((rows, 50), 7.0)
    want = linear(wide[:, 3 : K + 3].contiguous(), weight)
    assert linear(wide[:, 3 : K + 3], weight, out=out[:, 5:42]).data_ptr() == out[:, 5:42].data_ptr()
    assert torch.equal(out[:, 5:42], want)
    assert (out[:, :5] == 7).all()
    assert (out[:, 42:] == 7).all()


@formats
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_its_own_row(variant: str, name: str, value: float) -> None:
    if not is_native(variant):
        pytest.skip("torch promises no such thing")
    weight, x = pack([make(name, 37)]), torch.randn(9, K)
    want = linear(x, weight)
    x[4, 40] = value
    y = linear(x, weight)
    assert not y[4].isfinite().any()
    assert torch.equal(y[[0, 1, 2, 3, 5, 6, 7, 8]], want[[0, 1, 2, 3, 5, 6, 7, 8]])


@formats
@pytest.mark.usefixtures("variant")
def test_nothing_gives_nothing(name: str) -> None:
    weight = pack([make(name, 37)])
    assert linear(torch.randn(0, K), weight).shape == (0, 37)
    assert (linear(torch.zeros(3, K), weight) == 0).all()
    assert linear(torch.full((3, K), 1e-38), weight).abs().max() < 1e-29


@formats
@pytest.mark.usefixtures("variant")
def test_weights_below_one_another(name: str) -> None:
    stored = [make(name, n) for n in (32, 16, 21)]
    packed, x = pack(stored), torch.randn(4, K)
    assert (packed.out_features, packed.in_features) == (69, K)
    assert torch.equal(packed.dense(), torch.cat([weight.dense() for weight in stored]))
    parts = [packed.rows(0, 32), packed.rows(32, 48), packed.rows(48, 69)]
    del packed
    for part, weight in zip(parts, stored, strict=True):
        assert torch.equal(part.dense(), weight.dense())
        assert torch.equal(linear(x, part), linear(x, pack([weight])))


def test_parts_share_the_memory_of_the_whole(variant: str) -> None:
    packed = pack([make("bfloat16", 64)])
    before = packed.rows(32, 64).dense()
    _tensor(packed).zero_()
    assert before.any()
    assert not packed.rows(32, 64).dense().any(), variant


def _tensor(packed: PackedWeight) -> Tensor:
    found: Tensor = packed.stored.codes if hasattr(packed, "stored") else packed._tiles  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("name", "bits"), [("float16", 16), ("q4_0", 4.5), ("q4_1", 5), ("q8_0", 8.5), ("nf4", 4.5)])
@pytest.mark.usefixtures("variant")
def test_bytes_are_those_of_the_format(name: str, bits: float) -> None:
    packed = pack([make(name, 64)])
    if packed.address is None and name == "q4_0":
        bits += 0.5  # torch has use for the minimum
    assert packed.nbytes * 8 == bits * 64 * K


@pytest.mark.usefixtures("variant")
def test_a_copy_outlives_the_first() -> None:
    packed, x = pack([make("nf4", 37)]), torch.randn(4, K)
    want, copied = linear(x, packed), copy.deepcopy(packed)
    _tensor(packed).zero_()
    del packed
    gc.collect()
    assert torch.equal(linear(x, copied), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.usefixtures("variant")
def test_other_activations_take_the_twin(dtype: torch.dtype) -> None:
    packed, x = pack([make("q4_1", 37)]), torch.randn(4, K, dtype=dtype)
    assert torch.equal(linear(x, packed), linear_torch(x, packed))
    assert linear(x, packed).dtype == dtype


@pytest.mark.usefixtures("variant")
def test_a_bias_may_be_of_another_type() -> None:
    packed, x, bias = pack([make("q4_1", 37)]), torch.randn(4, K), torch.randn(37, dtype=torch.bfloat16)
    assert torch.equal(linear(x, packed, bias), linear(x, packed, bias.float()))


def test_the_unchecked_entry(variant: str) -> None:
    packed, x, y = pack([make("q8_0", 37)]), torch.randn(4, K), torch.empty(4, 37)
    assert (packed.address is not None) == is_native(variant)
    if packed.address is not None:
        NATIVE_LINEAR(packed.address, x.data_ptr(), K, 4, None, y.data_ptr(), 37)
        assert torch.equal(y, linear(x, packed))


def test_variants_share_their_layout() -> None:
    packed = {}
    stored, x = make("q4_1", 37), torch.randn(4, K)
    for name in (*native.installed(), native.TORCH):
        with native.using(name):
            packed[name] = pack([stored])
            for other in packed.values():
                torch.testing.assert_close(linear(x, other), linear_torch(x, other), rtol=1e-3, atol=1e-2)


@formats
@pytest.mark.usefixtures("variant")
def test_rows_of_a_table_are_looked_up(name: str) -> None:
    stored = make(name, 37, 96 if name in ("q4_0", "q4_1", "q8_0", "float32") else K)
    indices = torch.tensor([36, 0, 17, 17, 31])
    assert torch.equal(pack([stored]).take(indices), stored.dense()[indices])
    assert pack([stored]).take(indices[:0]).shape == (0, stored.in_features)


@formats
def test_rows_that_a_table_does_not_have(variant: str, name: str) -> None:
    if not is_native(variant):
        pytest.skip("torch raises")
    found = pack([make(name, 37)]).take(torch.tensor([-1, 36, 37, 1 << 40]))
    assert found.isnan().all(-1).tolist() == [True, False, True, True]
