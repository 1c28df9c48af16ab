"""The step being computed, where attention and adapted modules find it.

Some models do not pass extra arguments down to attention, and none pass any to linear maps, so the current step is
one variable of the thread that computes it: a step that is held up half-way leaves others theirs. It is set and cleared
by ``ModelRunner.execute`` alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.batch.grouped import Groups
from adapters.batch.low_rank import Places, RowUpdates
from adapters.batch.row_ops import RowChanges
from adapters.batch.rows import RowPlan, RowSegment, plan_rows
from hotkernels.attention import Sequences
from server.model.kv_cache import KVCache


@dataclass(eq=False)
class DecodePart:
    """All sequences with a single new token.

    Shape: ``rows`` [B] rows in the batch; ``slots`` [B, K] where each sequence's positions 0..K-1 lie (padding
    repeats the last of the row); ``lengths`` [B] valid positions, the new token included.
    """

    rows: Tensor
    slots: Tensor
    lengths: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Which positions each token sees, [B, 1, 1, K] bool."""
        if window not in self.masks:
            position = torch.arange(self.slots.shape[1], device=self.slots.device)
            seen = position < self.lengths[:, None]
            if window is not None:
                seen &= position >= self.lengths[:, None] - window
            self.masks[window] = seen[:, None, None]
        return self.masks[window]


@dataclass(eq=False)
class PrefillPart:
    """One sequence with several new tokens: batch rows ``row .. row + count``, positions ``start ..``.

    Shape: ``slots`` [1, start + count].
    """

    row: int
    count: int
    start: int
    slots: Tensor
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Which positions each token sees, [count, start + count] bool; None means plainly causal from position 0."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        total = self.start + self.count
        if self.start == 0 and (window is None or total <= window):
            return None
        key = torch.arange(total, device=self.slots.device)
        query = key[self.start :, None]
        seen = key <= query
        return seen if window is None else seen & (key > query - window)


@dataclass(eq=False)
class Step:
    """Everything the model's modules need to know of the batch at hand.

    On the CPU ``sequences`` say what the rows attend to, ``num_positions`` being those of the longest; where the cache
    is not read in place ``decode`` and ``prefills`` do, whose slots are read first.
    ``segments`` say which rows of the batch belong to which adapter, ``head_segments`` the same for the rows whose
    logits are wanted, which alone reach the output head. ``low_rank`` and ``head_low_rank`` are the low-rank updates of
    linear maps for these rows, ``row_ops`` and ``head_row_ops`` what else a native op does to them, and ``groups`` the
    adapters' other ops by module; ``embed_rows`` [N] and ``embeds``
    [N, hidden] replace embeddings. ``head_width`` is how many columns the output head must have at least, for adapters
    that brought tokens. With ``wants_hidden`` the model leaves what comes out of its last norm in ``hidden`` [T, size].
    """

    cache: KVCache
    slots: Tensor
    decode: DecodePart | None
    prefills: Sequence[PrefillPart]
    segments: Sequence[RowSegment]
    head_segments: Sequence[RowSegment]
    groups: Mapping[str, Groups]
    low_rank: RowUpdates | None = None
    head_low_rank: RowUpdates | None = None
    row_ops: RowChanges | None = None
    head_row_ops: RowChanges | None = None
    embed_rows: Tensor | None = None
    embeds: Tensor | None = None
    head_width: int = 0
    sequences: Sequences | None = None
    num_positions: int = 0
    plans: dict[tuple[tuple[object, ...], bool], RowPlan] = field(default_factory=dict)
    wants_hidden: bool = False
    hidden: Tensor | None = None

    @property
    def places(self) -> Places | None:
        """The numbers that ``low_rank`` and ``row_ops`` go by; None without either."""
        found = self.low_rank or self.row_ops
        return None if found is None else found.places

    def plan(self, members: tuple[object, ...], is_head: bool) -> RowPlan:
        """The row layout of a group's members; computed once a step, as most modules share it."""
        plan = self.plans.get((members, is_head))
        if plan is None:
            segments = self.head_segments if is_head else self.segments
            plan = self.plans[members, is_head] = plan_rows(members, segments, self.slots.device)
        return plan


class _Current(threading.local):
    step: Step | None = None


_current = _Current()


def current() -> Step:
    """The step being computed."""
    assert _current.step is not None, "the model ran outside of ModelRunner.execute"
    return _current.step


@contextmanager
def computing(step: Step) -> Iterator[None]:
    """Make ``step`` the current one for the duration of a forward pass."""
    _current.step = step
    try:
        yield
    finally:
        _current.step = None
