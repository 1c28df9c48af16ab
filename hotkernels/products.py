"""Products of a stack of matrices, one for each member of a group of adapters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hotkernels import native

_WEIGHTED_ROWS = native.Function("weighted_rows", "pipppipii")
_MATMUL = native.Function("matmul", "piipiiiipiiii")


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """The product of every matrix of a stack, the same for a row whatever rows are beside it.

    Semantics: ``y[g] = x[g] @ w[g]``, in float32, added up in an order that the shape of ``w[g]`` alone decides.
    Shape: ``x`` [G, n, in]; ``w`` [G, in, out] float32, bfloat16 or float16; returns [G, n, out] in ``x``'s type. Rows
    may lie any distance apart, and ``w`` may be transposed; it is read in place then, too.
    """
    if native.library() is None or x.dtype != torch.float32 or w.device.type != "cpu" or w.dtype not in native.STORED:
        return matmul_torch(x, w)
    if x.stride(2) != 1:
        x = x.contiguous()
    groups, rows, size = x.shape
    is_transposed = w.stride(2) != 1 and w.stride(1) == 1
    if is_transposed:
        w = w.mT
    elif w.stride(2) != 1:
        w = w.contiguous()
    y = torch.empty(groups, rows, w.shape[1 if is_transposed else 2], dtype=torch.float32)
    _MATMUL(
        x.data_ptr(), x.stride(0), x.stride(1),
        w.data_ptr(), native.STORED[w.dtype], w.stride(0), w.stride(1), is_transposed,
        y.data_ptr(), groups, rows, size, y.shape[2],
    )  # fmt: skip
    return y


def matmul_torch(x: Tensor, w: Tensor) -> Tensor:
    """The twin of ``matmul``."""
    return torch.bmm(x, w.to(x.dtype))


def block_matmul(x: Tensor, w: Tensor) -> Tensor:
    """``matmul`` block by block: of every row, each of K runs of features has a matrix of its own.

    Semantics: ``y[g, i, k] = x[g, i, k] @ w[g, k]``, or ``w[g, 0]`` for every k where there is but one.
    Shape: ``x`` [G, n, K, in], ``w`` [G, K or 1, in, out]; returns [G, n, K, out].
    """
    groups, rows, blocks, size = x.shape
    if w.shape[1] == 1:
        return matmul(x.reshape(groups, rows * blocks, size), w[:, 0]).view(groups, rows, blocks, -1)
    apart = x.transpose(1, 2).reshape(groups * blocks, rows, size)
    return matmul(apart, w.flatten(0, 1)).view(groups, blocks, rows, -1).transpose(1, 2)


def weighted_rows(x: Tensor, starts: Tensor, inputs: Tensor, values: Tensor) -> Tensor:
    """Sums of weighted rows: the product of a sparse matrix in compressed rows with ``x``.

    Semantics: ``y[o] = sum of values[i] * x[inputs[i]]`` over ``starts[o] <= i < starts[o + 1]``, added up in order.
    Shape: ``x`` [in, n] float32; ``starts`` [out + 1], ``inputs`` [k], both int32; ``values`` [k] float32, bfloat16 or
    float16; returns [out, n].
    """
    if not native.is_native(x, starts, inputs, values) or values.dtype not in native.STORED:
        return weighted_rows_torch(x, starts, inputs, values)
    y = torch.empty(len(starts) - 1, x.shape[1], dtype=torch.float32)
    _WEIGHTED_ROWS(
        x.data_ptr(), x.stride(0), starts.data_ptr(), inputs.data_ptr(),
        values.data_ptr(), native.STORED[values.dtype], y.data_ptr(), *y.shape,
    )  # fmt: skip
    return y


def weighted_rows_torch(x: Tensor, starts: Tensor, inputs: Tensor, values: Tensor) -> Tensor:
    """The twin of ``weighted_rows``."""
    return F.embedding_bag(
        inputs, x.contiguous(), starts, mode="sum", per_sample_weights=values.to(x.dtype), include_last_offset=True
    )
