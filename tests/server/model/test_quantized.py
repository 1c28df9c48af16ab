"""Quantized bases against peft over the same quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bases.compute import uses_kernels
from server.model.prepared import make_verification_plan
from tests.bases.gguf_files import add_blocks
from tests.server.model.support import assert_mixed_batch_equals_peft, make_runner

pytestmark = pytest.mark.numeric

BITS = {"nf4": 4.5, "nf4-dq": 4.125, "fp4": 4.5, "fp4-dq": 4.125, "int8": 8}  # scales of 4-bit blocks included


@pytest.fixture(scope="module")
def gguf_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_blocks(tiny_base, tmp_path_factory.mktemp("gguf") / "base")


@pytest.mark.parametrize("quantize", [*BITS, "gguf"])
def test_mixed_batch_equals_peft_over_the_same_weights(
    gguf_base: Path, tiny_adapters: Mapping[str, Path], quantize: str
) -> None:
    runner = make_runner(gguf_base, quantize)
    assert runner.quantization == quantize
    assert_mixed_batch_equals_peft(runner, gguf_base, tiny_adapters, quantize)


@pytest.mark.parametrize("quantize", ["nf4", "int8", "gguf"])
def test_kinds_that_scale_rotate_and_read_the_weights(
    gguf_base: Path, tiny_adapters: Mapping[str, Path], quantize: str
) -> None:
    names = ["ia3", "ln-tuning", "oft-shared", "boft-num", "miss-bat", "road-2", "dora-r4"]
    assert_mixed_batch_equals_peft(make_runner(gguf_base, quantize), gguf_base, tiny_adapters, quantize, names)


def test_a_base_from_a_gguf_is_served_as_stored_and_others_are_quantized(tiny_base: Path, gguf_base: Path) -> None:
    assert make_runner(gguf_base, "auto").quantization == "gguf"
    assert make_runner(tiny_base, "auto").quantization == "nf4"


@pytest.mark.parametrize("quantize", BITS)
def test_bytes_reported_are_those_of_the_packed_weights_and_their_scales(tiny_base: Path, quantize: str) -> None:
    plain, packed = make_runner(tiny_base, "none"), make_runner(tiny_base, quantize)
    linears = {n: out * in_ for n, (out, in_) in plain.spec.linears.items() if n != plain.spec.head}
    weights = sum(linears.values())
    spent = packed.base_bytes - (plain.base_bytes - 4 * weights)
    rows = sum(plain.spec.linears[name][0] for name in linears)
    if uses_kernels(torch.device("cpu"), torch.float32):  # which take scales in fp32, and one code book for all
        assert spent == weights * BITS[quantize.removesuffix("-dq")] / 8 + (4 * rows if quantize == "int8" else 0)
        return
    extra = spent - weights * BITS[quantize] / 8
    code_books = 16 * 4 + (256 * 4 + 2 * 4 + 4 if quantize.endswith("-dq") else 0)  # and scales of scales, and a mean
    assert 0 < extra <= (4 * rows if quantize == "int8" else len(linears) * code_books)


@pytest.mark.parametrize("quantize", BITS)
def test_adapters_of_an_unquantized_base_are_tried_out_with_room_for_its_rounding(quantize: str) -> None:
    assert make_verification_plan([], None, quantize, "float32", "float32").golden_tolerance >= 0.25
    assert make_verification_plan([], None, "none", "float32", "float32").golden_tolerance < 0.05
