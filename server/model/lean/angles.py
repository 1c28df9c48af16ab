"""Cosines and sines of positions, as the model's own module computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from server.model.lean.plan import TablePlan

_CHUNK = 1024  # positions computed at once


def angles(plan: TablePlan, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What the module gave, [1, T, R], as ``hotkernels.rotary.rotate`` takes it, [T, R / 2] in float32."""
    half = cos.shape[-1] // 2
    parts = {"twice": slice(half), "paired": slice(None, None, 2), "once": slice(None)}
    cos, sin = (tensor[0, :, parts[plan.halves]].float().contiguous() for tensor in (cos, sin))
    return cos, sin


class Table:
    """The angles of one plan. Those that depend on the position alone are computed once, in chunks of equal size."""

    def __init__(self, plan: TablePlan) -> None:
        self._plan = plan
        self._cos, self._sin = torch.empty(0), torch.empty(0)

    def rows(self, x: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``positions`` [T], all below ``count``; ``x`` is any of the hidden states."""
        if not self._plan.is_fixed:
            return self._compute(x, positions)
        while count > len(self._cos):
            found = self._compute(x, torch.arange(len(self._cos), len(self._cos) + _CHUNK))
            self._cos, self._sin = (
                torch.cat([old, new]) if len(old) else new
                for old, new in zip((self._cos, self._sin), found, strict=True)
            )
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def _compute(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._plan.module(x[None], positions[None], *self._plan.extra)
        return angles(self._plan, cos, sin)
