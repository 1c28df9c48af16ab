"""Low-rank updates of many adapters, each on its own rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRankRows:
    """Rows ``start .. stop`` of a batch get the update of one adapter.

    Shape: ``a`` [in_features, r], ``b`` [r, out_features], contiguous, float32, bfloat16 or float16; any r.
    """

    start: int
    stop: int
    a: Tensor
    b: Tensor


def add_low_rank(x: Tensor, y: Tensor, updates: Sequence[LowRankRows]) -> None:
    """Add every update to its rows of ``y``, in place.

    Semantics: ``y[start:stop] += (x[start:stop] @ a) @ b``, both products in float32, added up in order.
    Shape: ``x`` [T, in], ``y`` [T, out], rows any distance apart.
    """
    add_low_rank_torch(x, y, updates)


def add_low_rank_torch(x: Tensor, y: Tensor, updates: Sequence[LowRankRows]) -> None:
    """The twin of ``add_low_rank``."""
    for rows in updates:
        part = slice(rows.start, rows.stop)
        y[part] += ((x[part].float() @ rows.a.float()) @ rows.b.float()).to(y.dtype)
