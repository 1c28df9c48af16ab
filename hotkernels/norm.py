"""Norms of rows, with the addition of a residual before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hotkernels import native
from hotkernels.program import Program, Rows, Variable

_RMS_NORM = native.Function("rms_norm", "piipiiffpifpiiiii")
_LAYER_NORM = native.Function("layer_norm", "pippifpifpiii")


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Scale every row to a mean square of one, then by ``weight``.

    Semantics: ``x / sqrt(mean(x ** 2) + eps) * (weight + offset)``, in float32; gemma's ``offset`` is 1. With a
    ``residual``, ``residual += scale * x`` first, in place, and that is normed.
    Shape: ``x`` [T, n] and ``residual`` alike, ``weight`` [n]; or of heads, ``x`` [T, H, n], ``weight`` [n] or [H, n],
    without a residual. Returns ``out``, which may be ``x``; by default it is new, contiguous and float32.
    """
    if not native.is_native(x, weight, residual, out) or weight.dtype not in native.STORED:
        return rms_norm_torch(x, weight, eps, offset=offset, residual=residual, scale=scale, out=out)
    y = torch.empty(x.shape, dtype=torch.float32) if out is None else out
    rms_norm_native(x, weight, eps, y, offset=offset, residual=residual, scale=scale)
    return y


def rms_norm_native(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    offset: float = 0.0,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """``rms_norm`` without its checks."""
    heads, x_head, y_head = (x.shape[1], x.stride(1), out.stride(1)) if x.dim() == 3 else (1, 0, 0)
    _RMS_NORM(
        x.data_ptr(), x.stride(0), x_head,
        weight.data_ptr(), native.STORED[weight.dtype], weight.stride(0) if weight.dim() == 2 else 0,
        offset, eps, *_place(residual), scale,
        out.data_ptr(), out.stride(0), y_head, x.shape[0], heads, x.shape[-1],
    )  # fmt: skip


def add_rms_norm(
    program: Program,
    x: Rows,
    y: Variable,
    weight: Tensor,
    *,
    eps: float,
    residual: Variable | None = None,
    scale: float = 1.0,
    heads: int = 1,
) -> None:
    """Add ``rms_norm`` to a program.

    ``y`` may be where ``x`` is; its rows lie as those of ``x`` do, and of ``residual`` one behind the other. Each row
    begins with ``heads`` runs of as many numbers as ``weight`` has, or each of its rows.
    """
    size, of_head = weight.shape[-1], weight.stride(0) if weight.dim() == 2 else 0
    program.add(
        _RMS_NORM, x.at, x.stride, size, weight.data_ptr(), native.STORED[weight.dtype], of_head, 0.0, eps,
        residual, size, scale, y, x.stride, size, x.count, heads, size,
    )  # fmt: skip


def rms_norm_torch(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """The twin of ``rms_norm``."""
    x = _added(x, residual, scale).float()
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (weight.float() + offset)
    return y if out is None else out.copy_(y)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Bring every row to a mean of zero and a variance of one, then scale and shift it.

    Semantics: ``(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + eps) * weight + bias``, in float32; ``residual`` and
    ``scale`` as in ``rms_norm``.
    Shape: ``x`` [T, n] and ``residual`` alike, ``weight`` and ``bias`` [n]. Returns ``out``, which may be ``x``; by
    default it is new, contiguous and float32.
    """
    is_plain = weight.dtype in native.STORED and (bias is None or bias.dtype == weight.dtype)
    if not is_plain or not native.is_native(x, weight, bias, residual, out):
        return layer_norm_torch(x, weight, bias, eps, residual=residual, scale=scale, out=out)
    y = torch.empty(x.shape, dtype=torch.float32) if out is None else out
    layer_norm_native(x, weight, bias, eps, y, residual=residual, scale=scale)
    return y


def layer_norm_native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    *,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """``layer_norm`` without its checks."""
    _LAYER_NORM(
        x.data_ptr(), x.stride(0),
        weight.data_ptr(), native.pointer(bias), native.STORED[weight.dtype], eps,
        *_place(residual), scale, out.data_ptr(), out.stride(0), *x.shape,
    )  # fmt: skip


def add_layer_norm(
    program: Program,
    x: Rows,
    y: Variable,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    residual: Variable | None = None,
    scale: float = 1.0,
) -> None:
    """Add ``layer_norm`` to a program, as ``add_rms_norm`` does."""
    assert bias is None or bias.dtype == weight.dtype
    size = weight.shape[-1]
    program.add(
        _LAYER_NORM, x.at, x.stride, weight.data_ptr(), native.pointer(bias), native.STORED[weight.dtype], eps,
        residual, size, scale, y, x.stride, x.count, size,
    )  # fmt: skip


def layer_norm_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """The twin of ``layer_norm``."""
    x = _added(x, residual, scale).float()
    y = F.layer_norm(x, weight.shape, weight.float(), None if bias is None else bias.float(), eps)
    return y if out is None else out.copy_(y)


def _place(residual: Tensor | None) -> tuple[int | None, int]:
    """Where it begins, and the floats between its rows."""
    return (None, 0) if residual is None else (residual.data_ptr(), residual.stride(0))


def _added(x: Tensor, residual: Tensor | None, scale: float) -> Tensor:
    return x if residual is None else residual.add_(x, alpha=scale)
