"""Ops of many adapters at one module, run together: the fast form of ``adapters.batch.reference``.

Low-rank updates of any ranks are one native call, where they lie (``low_rank`` runs most of them without groups). The
members of any other group share one op type, its constants and its shapes; their tensors are stacked, so a step costs a
few batched products per module whatever the number of adapters. Nothing is padded to a maximum rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from adapters.batch.rows import RowPlan
from adapters.ops import AddOp, LowRank, Op, Site
from hotkernels import native
from hotkernels.low_rank import LowRankFactors, LowRankMaps, LowRankRows, LowRankTable, add_low_rank

_ALONE = LowRankMaps([(0, 0)])


@dataclass(frozen=True, eq=False)
class Group(ABC):
    """Ops of several members that run together; ``op`` stands for all of them."""

    members: tuple[object, ...]
    op: Op

    @property
    @abstractmethod
    def copied(self) -> int:
        """Bytes that were copied to make it."""

    @abstractmethod
    def apply(self, x: Tensor, y: Tensor, plan: RowPlan, site: Site | None = None) -> None:
        """Apply to the members' rows of ``y`` [T, out] in place, from ``x`` [T, in]. Other rows stay untouched.

        Ops on the input side are given the module's input as both.
        """


@dataclass(frozen=True, eq=False)
class LowRankGroup(Group):
    """Low-rank updates of any ranks, each read where it lies; ``op`` is the first."""

    tables: Sequence[LowRankTable]  # of each member, with one place

    @property
    @override
    def copied(self) -> int:
        return 0

    @override
    def apply(self, x: Tensor, y: Tensor, plan: RowPlan, site: Site | None = None) -> None:
        rows = LowRankRows([(self.tables[member], start, stop) for member, start, stop in plan.segments])
        add_low_rank(x, y, _ALONE, rows)


@dataclass(frozen=True, eq=False)
class StackedGroup(Group):
    """Ops of equal signature, stacked: ``op``'s tensors have the member as their first dimension."""

    _single: dict[int, Op] = field(default_factory=dict)

    @property
    @override
    def copied(self) -> int:
        return 0 if len(self.members) == 1 else sum(t.nbytes for t in self.op.tensors())

    @override
    def apply(self, x: Tensor, y: Tensor, plan: RowPlan, site: Site | None = None) -> None:
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
    """Put the ops that ``members`` have at one module into groups.

    A member's ops act in their order: first what stands first in every member's list, then what stands second.
    """
    buckets: dict[Hashable, list[tuple[object, Op]]] = {}
    for member, ops in members.items():
        for position, op in enumerate(ops):
            buckets.setdefault((position, *_company(member, op)), []).append((member, op))
    order = sorted(buckets, key=lambda key: key[0])  # type: ignore[index]
    groups = [_group(buckets[key]) for key in order]
    return Groups(
        before=[g for g in groups if g.op.SIDE == "input"],
        after=[g for g in groups if g.op.SIDE == "output"],
    )


def _company(member: object, op: Op) -> tuple[Hashable, ...]:
    """What ops have in common that run together."""
    if _is_native(op):
        return type(op), op.columns(0, 0)  # any ranks
    return op.signature(), None if op.STACKS else member


def _is_native(op: Op) -> bool:
    return isinstance(op, LowRank) and native.library() is not None and LowRankFactors(op.a, op.b).is_plain


def _group(bucket: Sequence[tuple[object, Op]]) -> Group:
    members, ops = zip(*bucket, strict=True)
    if _is_native(ops[0]):
        return LowRankGroup(members, ops[0], [LowRankTable([LowRankFactors(op.a, op.b)]) for op in ops])
    return StackedGroup(members, type(ops[0]).stack(ops))
