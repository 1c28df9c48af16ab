"""Norms and linear maps of a plan, ready to run, with what adapters do at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.batch.grouped import Groups
from adapters.batch.low_rank import JoinedMaps, Places, RowUpdates
from adapters.batch.row_ops import RowChanges
from adapters.batch.rows import RowSegment, plan_rows
from adapters.checkpoints import checkpoint
from bases.packed import PackedLinear
from hotkernels import native
from hotkernels.changed_linear import ChangedLinear, LinearPart
from hotkernels.linear import NATIVE_LINEAR, NATIVE_LINEAR_UPDATED, PackedWeight, StoredWeight, linear, pack
from hotkernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm, rms_norm_native
from hotkernels.program import Program, Rows, Variable
from server.model.lean.plan import NormPlan, Place
from server.model.sites import BaseSite, change_output, changed_input
from server.model.step import Step


class Norm:
    """A norm of whole rows."""

    def __init__(self, plan: NormPlan) -> None:
        self.name = plan.place.name
        self._site = BaseSite(plan.place.module)
        self._is_rms, self._weight, self._bias, self._eps = plan.kind == "rms", plan.weight, plan.bias, plan.eps
        self.width = plan.weight.shape[-1]

    def is_adapted(self, step: Step) -> bool:
        """Whether an adapter of the batch acts here."""
        return self.name in step.groups

    def write(self, program: Program, x: Rows, y: Variable, residual: Variable | None, scale: float) -> bool:
        """Add the norm without adapters to a program; False where torch computes it."""
        if native.library() is None:
            return False
        if self._is_rms:
            add_rms_norm(program, x, y, self._weight, eps=self._eps, residual=residual, scale=scale)
        else:
            add_layer_norm(program, x, y, self._weight, self._bias, eps=self._eps, residual=residual, scale=scale)
        return True

    def __call__(
        self, x: Tensor, step: Step, residual: Tensor | None = None, scale: float = 1.0, *, at_head: bool = False
    ) -> Tensor:
        """The norm of ``x`` [T, n], or with a ``residual`` of ``residual + scale x``, which it becomes."""
        checkpoint()
        groups = step.groups.get(self.name) if step.groups else None
        if groups is None:
            return self._normed(x, residual, scale)
        if residual is not None:
            x = residual.add_(x, alpha=scale)
        y = self._normed(changed_input(x, groups, step, self._site, at_head=at_head), None, 1.0)
        change_output(x, y, groups, step, self._site, at_head=at_head)
        return y

    def _normed(self, x: Tensor, residual: Tensor | None, scale: float) -> Tensor:
        if self._is_rms and native.library() is not None:
            y = torch.empty(x.shape)
            rms_norm_native(x, self._weight, self._eps, y, residual=residual, scale=scale)
            return y
        if self._is_rms:
            return rms_norm(x, self._weight, self._eps, residual=residual, scale=scale)
        return layer_norm(x, self._weight, self._bias, self._eps, residual=residual, scale=scale)


class HeadNorm:
    """A norm of the queries or keys: of every head by itself, or of all heads of a row together."""

    def __init__(self, plan: NormPlan) -> None:
        self.name = plan.place.name
        self._site = BaseSite(plan.place.module)
        self._is_rms, self._weight, self._bias, self._eps = plan.kind == "rms", plan.weight, plan.bias, plan.eps

    def is_adapted(self, step: Step) -> bool:
        """Whether an adapter of the batch acts here."""
        return self.name in step.groups

    def write(self, program: Program, x: Rows, count: int, dim: int) -> bool:
        """Add it to a program: of the first ``count`` heads of each row, in place. False where there is no op."""
        is_whole = self._weight.dim() == 1 and self._weight.shape[0] == count * dim
        if native.library() is None or not (self._is_rms or is_whole):
            return False
        if self._is_rms:
            add_rms_norm(program, x, x.at, self._weight, eps=self._eps, heads=1 if is_whole else count)
        else:
            add_layer_norm(program, x, x.at, self._weight, self._bias, eps=self._eps)
        return True

    def __call__(self, heads: Tensor, step: Step) -> None:
        """Norm ``heads`` [T, H, D] in place."""
        groups = step.groups.get(self.name) if step.groups else None
        rows, count, dim = heads.shape
        is_whole = self._weight.dim() == 1 and self._weight.shape[0] == count * dim
        x = heads.view(rows, count * dim) if is_whole else heads
        if groups is None:
            return self._norm_(x)
        given = x.clone(memory_format=torch.contiguous_format).view(-1, x.shape[-1])
        self._norm_(x)
        y = x.clone(memory_format=torch.contiguous_format).view(given.shape)
        self._adapt(given, y, groups, step, 1 if is_whole else count)
        x.copy_(y.view(x.shape))
        return None

    def _norm_(self, x: Tensor) -> None:
        if self._is_rms:
            rms_norm(x, self._weight, self._eps, out=x)
        elif self._weight.dim() == 1 and x.dim() == 2:
            layer_norm(x, self._weight, self._bias, self._eps, out=x)
        else:
            y = F.layer_norm(x, x.shape[-1:], None, None, self._eps) * self._weight
            x.copy_(y if self._bias is None else y + self._bias)

    def _adapt(self, x: Tensor, y: Tensor, groups: Groups, step: Step, count: int) -> None:
        """The ops of adapters, whose rows are here ``count`` heads each."""
        assert not groups.before, "no op changes the input of a norm"
        segments = [RowSegment(s.member, s.start * count, s.stop * count) for s in step.segments]
        for group in groups.after:
            group.apply(x, y, plan_rows(group.members, segments, x.device), self._site)


@dataclass(frozen=True)
class UpdatesAt:
    """What adapters do by the numbers of ``places``, and where a program finds whose rows get it.

    Those are addresses and counts: of ``LowRankRows``, and of ``RowOpRows`` for inputs and for outputs.
    """

    places: Places
    low_rank: tuple[Variable, Variable]
    before: tuple[Variable, Variable]
    after: tuple[Variable, Variable]


class Projection:
    """Linear maps of one input, their outputs side by side."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.names = [place.name for place in places]
        self._sites = [BaseSite(place.module) for place in places]
        modules = [place.module for place in places]
        ends = list(accumulate(_width(module) for module in modules))
        self._slices = [slice(end - _width(module), end) for end, module in zip(ends, modules, strict=True)]
        self.in_features, self.out_features = _in_features(modules[0]), ends[-1]
        columns = [part.start for part in self._slices]
        self._maps = JoinedMaps(dict(zip(self.names, columns, strict=True)))
        self._changed: tuple[Places, ChangedLinear] | None = None
        self._each = [JoinedMaps({name: 0}) for name in self.names]
        self._bias = _joined_bias(modules)
        self._weight = _joined_weight(modules)
        self._address = None if self._weight is None else self._weight.address
        self._bias_address = None if self._bias is None else self._bias.data_ptr()
        self._parts = [weight for module in modules if (weight := packed(module)) is not None]
        assert len(self._parts) == len(modules), "a weight that no kernel knows; see reading"

    def is_adapted(self, step: Step) -> bool:
        """Whether an adapter of the batch acts here otherwise than by low-rank updates."""
        return any(name in step.groups for name in self.names)

    def write(self, program: Program, x: Rows, y: Variable, updates: UpdatesAt | None) -> bool:
        """Add the product, with ``updates``, to a program; False where it is not a single one of the library's."""
        if self._address is None:
            return False
        if updates is None:
            product = self._address, x.at, x.stride, x.count, self._bias_address, y, self.out_features
            program.add(NATIVE_LINEAR, *product)
        else:
            maps = self._maps.among(updates.places)
            changed = self._changed_linear(updates.places)
            changed.write(program, x, y, maps, (*updates.low_rank, *updates.before, *updates.after))
        return True

    def __call__(self, x: Tensor, step: Step, *, at_head: bool = False) -> Tensor:
        """The outputs for ``x`` [T, in]; wider at the head in a batch with adapters that brought tokens."""
        checkpoint()
        updates = step.head_low_rank if at_head else step.low_rank
        changes = step.head_row_ops if at_head else step.row_ops
        found = [step.groups.get(name) for name in self.names] if step.groups else []
        is_wider = at_head and step.head_width > self.out_features
        y = self._of_changed(x, found, changes, step, at_head)
        if y is None and not is_wider:
            y = self._all(x, updates)
        else:
            y = self._all(x, None) if y is None else y
            if is_wider:
                y = F.pad(y, (0, step.head_width - self.out_features))  # for tokens that adapters brought
            if updates is not None:
                self._maps.add(x, y, updates)
        if changes is not None:
            changes.change_output(x, y, self._maps)
        own = self.out_features if at_head else 0
        for groups, site, part in zip(found, self._sites, self._slices, strict=False):
            if groups is not None:
                change_output(x, y if own else y[:, part], groups, step, site, at_head=at_head, own=own)
        return y

    def _of_changed(
        self, x: Tensor, found: Sequence[Groups | None], changes: RowChanges | None, step: Step, at_head: bool
    ) -> Tensor | None:
        """The base's product, where adapters change the input for one map or the other; None where they do not."""
        if any(groups is not None and groups.before for groups in found):
            given = [
                x if groups is None else changed_input(x, groups, step, site, at_head=at_head)
                for groups, site in zip(found, self._sites, strict=True)
            ]
            if changes is not None:
                given = [changes.changed_input(rows, maps) for rows, maps in zip(given, self._each, strict=True)]
            return self._apart(given)
        if changes is None or not changes.change_input(self._maps):
            return None
        return self._changed_linear(changes.places)(x, changes.before)

    def _changed_linear(self, places: Places) -> ChangedLinear:
        """Its maps with their numbers. Kept: a model has one ``Places``."""
        if self._changed is None or self._changed[0] is not places:
            parts = [
                LinearPart(places.number(name), weight, self._part_bias(i))
                for i, (name, weight) in enumerate(zip(self.names, self._parts, strict=True))
            ]
            self._changed = places, ChangedLinear(parts, self._weight, self._bias)
        return self._changed[1]

    def _apart(self, given: Sequence[Tensor]) -> Tensor:
        """The base's product, with an input for each map."""
        y = given[0].new_empty(len(given[0]), self.out_features)
        for i, (x, part) in enumerate(zip(given, self._slices, strict=True)):
            y[:, part] = linear(x, self._parts[i], self._part_bias(i))
        return y

    def _part_bias(self, index: int) -> Tensor | None:
        return None if self._bias is None else self._bias[self._slices[index]]

    def _all(self, x: Tensor, updates: RowUpdates | None) -> Tensor:
        """The base's product, with low-rank ``updates`` of it."""
        if self._address is not None:  # without checks: a step has a hundred products
            rows, width = x.shape[0], self.out_features
            y = torch.empty(rows, width)
            product = self._address, x.data_ptr(), x.stride(0), rows, self._bias_address, y.data_ptr(), width
            if updates is None:
                NATIVE_LINEAR(*product)
            else:
                maps, of_rows = self._maps.among(updates.places), updates.rows
                NATIVE_LINEAR_UPDATED(*product, maps.address, maps.count, of_rows.address, of_rows.count)
            return y
        if self._weight is not None:
            y = linear(x, self._weight, self._bias)
        else:
            y = torch.cat([linear(x, weight) for weight in self._parts], -1)
            y = y if self._bias is None else y.add_(self._bias)
        if updates is not None:
            self._maps.add(x, y, updates)
        return y


def _width(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.out_features


def _in_features(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.in_features


def packed(module: nn.Module) -> PackedWeight | None:
    """The weight of a linear map as ``hotkernels`` take it; None where it is kept in a form that they do not know."""
    if isinstance(module, PackedLinear):
        return module.packed
    is_plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    if not is_plain or native.library() is not None:
        return None
    return pack([StoredWeight(module.get_parameter("weight").detach())])


def _joined_weight(modules: Sequence[nn.Module]) -> PackedWeight | None:
    """The one weight that all ``modules`` are parts of, in this order; None when there is none."""
    if len(modules) == 1:
        return packed(modules[0])
    first, end = modules[0], 0
    joined = first.joined if isinstance(first, PackedLinear) else None
    for module in modules:
        if not isinstance(module, PackedLinear) or module.joined is not joined or module.offset != end:
            return None
        end += module.out_features
    return joined if joined is not None and end == joined.out_features else None


def _joined_bias(modules: Sequence[nn.Module]) -> Tensor | None:
    biases = [getattr(module, "bias", None) for module in modules]
    if all(bias is None for bias in biases):
        return None
    return torch.cat([
        torch.zeros(_width(module)) if bias is None else bias.detach().float()
        for module, bias in zip(modules, biases, strict=True)
    ])  # fmt: skip
