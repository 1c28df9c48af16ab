"""Ops of many adapters at one module, run together: the fast form of ``adapters.batch.reference``.

The members of a group share one op type and, for low-rank updates, one rank; their tensors are stacked, so a step
costs two batched products per module whatever the number of adapters. Nothing is padded to a maximum rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.batch.rows import RowPlan
from adapters.ops import Bias, LinearOp, LowRank


@dataclass(frozen=True, eq=False)
class LowRankGroup:
    """Low-rank updates of equal rank.

    Semantics: for every row i of member g: ``y[i] += (x[i] @ a[g].T) @ b[g].T``.
    Shape: ``a`` [G, in, r] and ``b`` [G, r, out], transposed once so that products read them in order.
    """

    members: tuple[object, ...]
    a: Tensor
    b: Tensor

    def apply(self, x: Tensor, y: Tensor, plan: RowPlan) -> None:
        """Add to ``y`` [T, out] in place, from ``x`` [T, in]; both in the group's dtype."""
        for g, start, stop in plan.long:
            y[start:stop].addmm_(x[start:stop] @ self.a[g], self.b[g])
        if plan.width:
            table = x.index_select(0, plan.gather).view(len(self.members), plan.width, -1)
            update = torch.bmm(torch.bmm(table, self.a), self.b).view(-1, y.shape[-1])
            y.index_add_(0, plan.rows, update.index_select(0, plan.flat))


@dataclass(frozen=True, eq=False)
class BiasGroup:
    """Biases.

    Semantics: for every row i of member g: ``y[i] += delta[g]``.
    Shape: ``delta`` [G, out].
    """

    members: tuple[object, ...]
    delta: Tensor

    def apply(self, x: Tensor, y: Tensor, plan: RowPlan) -> None:
        """Add to ``y`` [T, out] in place; ``x`` is not read."""
        for g, start, stop in plan.long:
            y[start:stop] += self.delta[g]
        if plan.width:
            member = plan.flat // plan.width
            y.index_add_(0, plan.rows, self.delta.index_select(0, member))


Group = LowRankGroup | BiasGroup


def group_ops(members: Mapping[object, Sequence[LinearOp]]) -> list[Group]:
    """Stack the ops that ``members`` have at one module into groups, by op type and rank."""
    buckets: dict[tuple[type[LinearOp], int], list[tuple[object, LinearOp]]] = {}
    for member, ops in members.items():
        for op in ops:
            rank = op.rank if isinstance(op, LowRank) else 0
            buckets.setdefault((type(op), rank), []).append((member, op))
    return [_stack(bucket) for bucket in buckets.values()]


def _stack(bucket: Iterable[tuple[object, LinearOp]]) -> Group:
    members, ops = zip(*bucket, strict=True)
    biases = [op for op in ops if isinstance(op, Bias)]
    if biases:
        return BiasGroup(members, torch.stack([op.delta for op in biases]))
    low = [op for op in ops if isinstance(op, LowRank)]
    a, b = torch.stack([op.a.T for op in low]), torch.stack([op.b.T for op in low])
    return LowRankGroup(members, a.contiguous(), b.contiguous())
