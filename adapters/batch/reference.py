"""The ops as a naive loop, one row at a time in float32: what the fast executors are tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters.ops import Op, Site

Forward = Callable[[Tensor], Tensor]


def apply_reference(base: Forward, x: Tensor, ops_of_row: Sequence[Sequence[Op]], site: Site | None = None) -> Tensor:
    """The outputs of a module for the inputs ``x``, with each row's ops applied; ``x`` stays as it is.

    Semantics: row t of the result is ``base(x'[t])`` with the output ops of ``ops_of_row[t]`` applied in order, where
    ``x'[t]`` is ``x[t]`` with its input ops applied in order; output ops see ``x[t]``.
    Shape: ``x`` [T, in_features], ``ops_of_row`` T sequences; result [T, out_features] float32.
    """
    assert len(x) == len(ops_of_row)
    rows = []
    for row, ops in zip(x, ops_of_row, strict=True):
        given = row.float() if row.is_floating_point() else row
        changed = given
        for op in ops:
            if op.SIDE == "input":
                changed = op.reference(changed, changed, site)
        y = base(changed.to(x.dtype)[None])[0].float()
        for op in ops:
            if op.SIDE == "output":
                y = op.reference(given, y, site)
        rows.append(y)
    return torch.stack(rows)
