"""Rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hotkernels import native
from hotkernels.program import Program, Rows, Variable

_ROTATE = native.Function("rotate", "piipipiiiii")


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> None:
    """Turn the first R numbers of every head by its row's angles, in place (https://arxiv.org/abs/2104.09864).

    Semantics: pairs are ``(x[i], x[i + R / 2])``, or interleaved ``(x[2 i], x[2 i + 1])``; a pair (a, b) becomes
    ``(a cos[i] - b sin[i], b cos[i] + a sin[i])``.
    Shape: ``x`` [T, H, D], its rows and heads any distance apart; ``cos``, ``sin`` [T, R / 2] float32.
    """
    if not native.is_native(x, cos, sin):
        return rotate_torch(x, cos, sin, interleaved=interleaved)
    _ROTATE(
        x.data_ptr(), x.stride(0), x.stride(1), cos.data_ptr(), cos.stride(0), sin.data_ptr(), sin.stride(0),
        x.shape[0], x.shape[1], cos.shape[1], interleaved,
    )  # fmt: skip
    return None


@dataclass(frozen=True)
class AnglesAt:
    """Where a program finds cosines and sines [T, R / 2], one row behind the other, and R / 2."""

    cos: Variable
    sin: Variable
    half: Variable


def add_rotation(program: Program, x: Rows, angles: AnglesAt, *, heads: int, head_dim: int, interleaved: bool) -> None:
    """Add ``rotate`` to a program: of the first ``heads`` heads of each row."""
    program.add(
        _ROTATE, x.at, x.stride, head_dim, angles.cos, angles.half, angles.sin, angles.half,
        x.count, heads, angles.half, interleaved,
    )  # fmt: skip


def rotate_torch(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> None:
    """The twin of ``rotate``."""
    half = cos.shape[-1]
    head = x[..., : 2 * half]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else (head[..., :half], head[..., half:])
    cos, sin = cos[:, None], sin[:, None]
    turned = (a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)
    a.copy_(turned[0])
    b.copy_(turned[1])
