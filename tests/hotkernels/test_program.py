"""Ops that are written down and called in one go, against the same ops called one by one."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.activation import Activation, activated, add_activation, gated
from hotkernels.attention import (
    AttentionRule,
    CacheAt,
    Scales,
    Sequences,
    SequencesAt,
    add_attention,
    add_cache_write,
    cache_numbers,
    paged_attention,
    write_cache,
)
from hotkernels.linear import NATIVE_LINEAR, StoredWeight, linear, pack
from hotkernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from hotkernels.program import Program, Rows, Variable
from hotkernels.rotary import AnglesAt, add_rotation, rotate

pytestmark = pytest.mark.numeric

COUNT = Variable(3)


@pytest.fixture(autouse=True)
def _is_native(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch has no programs")


def rows(number: int, width: int, first: int = 0) -> Rows:
    return Rows(Variable(number, 4 * first), COUNT, width)


def run(program: Program, *tensors: Tensor, start: int = 0, stop: int | None = None) -> None:
    """The first three variables are ``tensors``, the fourth how many rows they have, then any others."""
    first, rest = tensors[:3], tensors[3:]
    numbers = [t.data_ptr() for t in first] + [0] * (3 - len(first)) + [len(tensors[0])]
    numbers += [*(t.data_ptr() for t in rest), rest[-1].shape[1] if rest else 0]
    program.run(start, len(program) if stop is None else stop, (ctypes.c_int64 * len(numbers))(*numbers))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_calls_follow_one_another(count: int) -> None:
    x, residual, scale = torch.randn(count, 64), torch.randn(count, 64), torch.rand(64)
    weight = pack([StoredWeight(torch.randn(48, 64))])
    program = Program()
    add_rms_norm(program, rows(0, 64), Variable(0), scale, eps=1e-5, residual=Variable(1), scale=0.5)
    program.add(NATIVE_LINEAR, weight.address, Variable(0), 64, COUNT, None, Variable(2), 48)
    kept, y = residual.clone(), torch.empty(count, 48)
    want = linear(rms_norm(x, scale, 1e-5, residual=kept, scale=0.5), weight)
    run(program, x, residual, y)
    assert torch.equal(y, want)
    assert torch.equal(residual, kept)


def test_a_part_of_the_calls() -> None:
    x, scale, program = torch.randn(3, 8), torch.rand(8), Program()
    ends = [0]
    for _ in range(3):
        add_rms_norm(program, rows(0, 8), Variable(0), scale, eps=0.1)
        ends.append(len(program))
    want = rms_norm(rms_norm(x, scale, 0.1), scale, 0.1)
    run(program, x, start=ends[1])
    assert torch.equal(x, want)


def test_layer_norms() -> None:
    x, weight, bias, y = torch.randn(7, 37), torch.rand(37), torch.randn(37), torch.empty(7, 37)
    program = Program()
    add_layer_norm(program, rows(0, 37), Variable(1), weight, bias, eps=1e-5)
    run(program, x, y)
    assert torch.equal(y, layer_norm(x, weight, bias, 1e-5))


@pytest.mark.parametrize("per_head", [False, True])
def test_norms_of_some_heads(per_head: bool) -> None:
    heads = torch.randn(5, 6, 16)
    weight = torch.rand(4, 16) if per_head else torch.rand(16)
    want = heads.clone()
    rms_norm(want[:, 1:5], weight, 1e-6, out=want[:, 1:5])
    program = Program()
    x = rows(0, 96, 16)
    add_rms_norm(program, x, x.at, weight, eps=1e-6, heads=4)
    run(program, heads)
    assert torch.equal(heads, want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations(interleaved: bool) -> None:
    heads, cos, sin = torch.randn(5, 6, 16), torch.rand(5, 6), torch.rand(5, 6)
    want = heads.clone()
    rotate(want[:, :4], cos, sin, interleaved=interleaved)
    program, angles = Program(), AnglesAt(Variable(4), Variable(5), Variable(6))
    add_rotation(program, rows(0, 96), angles, heads=4, head_dim=16, interleaved=interleaved)
    run(program, heads, heads, heads, cos, sin)
    assert torch.equal(heads, want)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_activations(kind: Activation) -> None:
    x, y = torch.randn(5, 34), torch.empty(5, 34)
    for is_gated, op in ((True, gated), (False, activated)):
        program = Program()
        add_activation(program, kind, rows(0, 34), Variable(1), is_gated=is_gated)
        run(program, x, y)
        want = op(x, kind)
        assert torch.equal(y.view(-1)[: want.numel()], want.view(-1))


@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_attention(stored: torch.dtype) -> None:
    """Three sequences that go on after 0, 3 and 20 positions, in heads that lie in one row: 4, 2 and 2."""
    counts, starts, block_size = [2, 1, 4], [0, 3, 20], 4
    where = Sequences(
        torch.tensor([0, 2, 3], dtype=torch.int32),
        torch.tensor(counts, dtype=torch.int32),
        torch.tensor(starts, dtype=torch.int32),
        torch.randperm(18, dtype=torch.int32).view(3, 6),
        block_size,
    )
    heads, rule = torch.randn(7, 8, 16), AttentionRule(0.25, sinks=torch.randn(4))
    slots = [
        int(where.blocks[s, p // block_size]) * block_size + p % block_size
        for s in range(3)
        for p in range(starts[s], starts[s] + counts[s])
    ]
    new = torch.tensor(slots)
    caches = [_cache(stored), _cache(stored)]
    keys, values, scales = caches[0]
    write_cache(heads[:, 4:6], heads[:, 6:], new, keys, values, scales=scales)
    want = paged_attention(heads[:, :4], keys, values, where, rule, scales=scales)

    numbers = [heads.data_ptr(), 0, 0, 7, new.data_ptr()]
    out = torch.empty(7, 4, 16)
    numbers[1] = out.data_ptr()
    numbers += [where.row.data_ptr(), where.count.data_ptr(), where.start.data_ptr(), where.blocks.data_ptr(), 3, 6, 4]
    numbers += cache_numbers(*caches[1])
    sequences = SequencesAt(*map(Variable, range(5, 12)))
    cache, program = CacheAt(*map(Variable, range(12, 21))), Program()
    add_cache_write(program, rows(0, 128, 64), rows(0, 128, 96).at, Variable(4), cache=cache, heads=2, dim=16)
    add_attention(program, rows(0, 128), Variable(1), rule, cache=cache, sequences=sequences, heads=(4, 2, 16))
    program.run(0, len(program), (ctypes.c_int64 * len(numbers))(*numbers))
    assert torch.equal(out, want)
    assert torch.equal(caches[1][0], keys)
    assert torch.equal(caches[1][1], values)


def _cache(stored: torch.dtype) -> tuple[Tensor, Tensor, Scales | None]:
    """18 blocks of four slots, three in a page, the same ones every time."""
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(6, 12, 2, 16, generator=generator).mul(30).to(stored) for _ in range(2))
    scales = torch.rand(6, 12, 2, generator=generator) / 30
    return keys, values, (scales, scales.clone()) if stored == torch.int8 else None


def test_a_call_has_as_many_arguments_as_its_op() -> None:
    with pytest.raises(AssertionError, match="7 arguments"):
        Program().add(NATIVE_LINEAR, 1, 2)
