"""The ops as a naive loop, one row at a time in float32: what the fast executors are tested against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adapters.ops import LinearOp, LowRank


def apply_reference(x: Tensor, y: Tensor, ops_of_row: Sequence[tuple[LinearOp, ...]]) -> Tensor:
    """The outputs ``y`` of a module for the inputs ``x``, with each row's ops applied; inputs stay as they are.

    Semantics: row t of the result is ``y[t]`` with ``ops_of_row[t]`` applied as their docstrings say.
    Shape: ``x`` [T, in_features], ``y`` [T, out_features], ``ops_of_row`` T tuples; result [T, out_features] float32.
    """
    assert len(x) == len(y) == len(ops_of_row)
    out = y.float().clone()
    for t, ops in enumerate(ops_of_row):
        for op in ops:
            if isinstance(op, LowRank):
                out[t] += (x[t].float() @ op.a.float().T) @ op.b.float().T
            else:
                out[t] += op.delta.float()
    return out
