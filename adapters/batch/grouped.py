"""Ops of many adapters at one module, run together: the fast form of ``adapters.batch.reference``.

The members of a group share one op type, its constants and its shapes (for low-rank updates: the rank); their tensors
are stacked, so a step costs a few batched products per module whatever the number of adapters. Nothing is padded to a
maximum rank.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from adapters.batch.rows import RowPlan
from adapters.ops import AddOp, Op, Site


@dataclass(frozen=True, eq=False)
class Group:
    """Ops of equal signature, stacked: ``op``'s tensors have the member as their first dimension."""

    members: tuple[object, ...]
    op: Op
    _single: dict[int, Op] = field(default_factory=dict)

    def apply(self, x: Tensor, y: Tensor, plan: RowPlan, site: Site | None = None) -> None:
        """Apply to the members' rows of ``y`` [T, out] in place, from ``x`` [T, in]. Other rows stay untouched.

        Ops on the input side are given the module's input as both.
        """
        for g, start, stop in plan.long:
            self._segment(self._member(g), x[start:stop], y[start:stop], site)
        if plan.width:
            self._table(x, y, plan, site)

    def _table(self, x: Tensor, y: Tensor, plan: RowPlan, site: Site | None) -> None:
        """All members' short segments at once, padded to the longest of them."""
        size = (len(self.members), plan.width, -1)
        xs = x.index_select(0, plan.gather).view(size)
        if isinstance(self.op, AddOp):
            update = self.op.update(xs).reshape(-1, y.shape[-1])
            y.index_add_(0, plan.rows, update.index_select(0, plan.flat))
            return
        ys = xs if x is y else y.index_select(0, plan.gather).view(size)
        new = self.op.batched(xs, ys, site).reshape(-1, y.shape[-1])
        y.index_copy_(0, plan.rows, new.index_select(0, plan.flat))

    def _member(self, index: int) -> Op:
        """The part of the stack that is one member's. Kept: a step asks at every module."""
        if len(self.members) == 1:
            return self.op
        if index not in self._single:
            self._single[index] = self.op.member(index)
        return self._single[index]

    @staticmethod
    def _segment(op: Op, x: Tensor, y: Tensor, site: Site | None) -> None:
        if isinstance(op, AddOp):
            op.add_(x, y)
        else:
            y.copy_(op.batched(x[None], y[None], site)[0])


@dataclass(frozen=True)
class Groups:
    """Everything that a batch's adapters do at one module, in the order it is done."""

    before: Sequence[Group] = ()
    after: Sequence[Group] = ()


def group_ops(members: Mapping[object, Sequence[Op]]) -> Groups:
    """Stack the ops that ``members`` have at one module into groups.

    A member's ops act in their order: first what stands first in every member's list, then what stands second.
    """
    buckets: dict[Hashable, list[tuple[object, Op]]] = {}
    for member, ops in members.items():
        for position, op in enumerate(ops):
            alone = None if op.STACKS else member
            buckets.setdefault((position, op.signature(), alone), []).append((member, op))
    order = sorted(buckets, key=lambda key: key[0])  # type: ignore[index]
    groups = [_stack(buckets[key]) for key in order]
    return Groups(
        before=[g for g in groups if g.op.SIDE == "input"],
        after=[g for g in groups if g.op.SIDE == "output"],
    )


def _stack(bucket: Sequence[tuple[object, Op]]) -> Group:
    members, ops = zip(*bucket, strict=True)
    return Group(members, type(ops[0]).stack(ops))
