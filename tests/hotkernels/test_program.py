"""Ops that are written down and called in one go, against the same ops called one by one."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.activation import Activation, activated, gated, write_activation
from hotkernels.linear import NATIVE_LINEAR, StoredWeight, linear, pack
from hotkernels.norm import layer_norm, rms_norm, write_layer_norm, write_rms_norm
from hotkernels.program import Program, Rows, Variable
from hotkernels.rotary import AnglesAt, rotate, write_rotation

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
    write_rms_norm(program, rows(0, 64), Variable(0), scale, eps=1e-5, residual=Variable(1), scale=0.5)
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
        write_rms_norm(program, rows(0, 8), Variable(0), scale, eps=0.1)
        ends.append(len(program))
    want = rms_norm(rms_norm(x, scale, 0.1), scale, 0.1)
    run(program, x, start=ends[1])
    assert torch.equal(x, want)


def test_layer_norms() -> None:
    x, weight, bias, y = torch.randn(7, 37), torch.rand(37), torch.randn(37), torch.empty(7, 37)
    program = Program()
    write_layer_norm(program, rows(0, 37), Variable(1), weight, bias, eps=1e-5)
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
    write_rms_norm(program, x, x.at, weight, eps=1e-6, heads=4)
    run(program, heads)
    assert torch.equal(heads, want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations(interleaved: bool) -> None:
    heads, cos, sin = torch.randn(5, 6, 16), torch.rand(5, 6), torch.rand(5, 6)
    want = heads.clone()
    rotate(want[:, :4], cos, sin, interleaved=interleaved)
    program, angles = Program(), AnglesAt(Variable(4), Variable(5), Variable(6))
    write_rotation(program, rows(0, 96), angles, heads=4, head_dim=16, interleaved=interleaved)
    run(program, heads, heads, heads, cos, sin)
    assert torch.equal(heads, want)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_activations(kind: Activation) -> None:
    x, y = torch.randn(5, 34), torch.empty(5, 34)
    for is_gated, op in ((True, gated), (False, activated)):
        program = Program()
        write_activation(program, kind, rows(0, 34), Variable(1), is_gated=is_gated)
        run(program, x, y)
        want = op(x, kind)
        assert torch.equal(y.view(-1)[: want.numel()], want.view(-1))


def test_a_call_has_as_many_arguments_as_its_op() -> None:
    with pytest.raises(AssertionError, match="7 arguments"):
        Program().add(NATIVE_LINEAR, 1, 2)
