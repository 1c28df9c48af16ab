"""Norms and linear maps of a plan, ready to run, with what adapters do at them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.batch.grouped import Groups
from adapters.batch.rows import RowSegment, plan_rows
from kernels.linear import ROWS, PackedWeight, StoredWeight, linear, pack
from kernels.norm import rms_norm
from server.model.lean.plan import NormPlan, Place
from server.model.sites import BaseSite, change_output, changed_input
from server.model.step import Step


class Norm:
    """A norm of whole rows."""

    def __init__(self, plan: NormPlan) -> None:
        self.name = plan.place.name
        self._site = BaseSite(plan.place.module)
        self._is_rms, self._weight, self._bias, self._eps = plan.kind == "rms", plan.weight, plan.bias, plan.eps

    def __call__(self, x: Tensor, step: Step, *, at_head: bool = False) -> Tensor:
        """The norm of ``x`` [T, n], which stays as it is."""
        groups = step.groups.get(self.name) if step.groups else None
        if groups is None:
            return self._normed(x)
        y = self._normed(changed_input(x, groups, step, self._site, at_head=at_head))
        change_output(x, y, groups, step, self._site, at_head=at_head)
        return y

    def after(self, stream: Tensor, added: Tensor | None, scale: float, step: Step) -> Tensor:
        """The norm of ``stream + scale added``, which ``stream`` becomes."""
        if added is not None:
            stream.add_(added, alpha=scale)
        return self(stream, step)

    def _normed(self, x: Tensor) -> Tensor:
        if self._is_rms:
            return rms_norm(x, self._weight, self._eps)
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class HeadNorm:
    """A norm of the queries or keys: of every head by itself, or of all heads of a row together."""

    def __init__(self, plan: NormPlan) -> None:
        self.name = plan.place.name
        self._plan, self._site = plan, BaseSite(plan.place.module)

    def __call__(self, heads: Tensor, step: Step) -> None:
        """Norm ``heads`` [T, H, D] in place."""
        groups = step.groups.get(self.name) if step.groups else None
        plan, (rows, count, dim) = self._plan, heads.shape
        is_whole = plan.weight.dim() == 1 and plan.weight.shape[0] == count * dim
        x = heads.reshape(rows, count * dim) if is_whole else heads.reshape(rows * count, dim)
        y = self._normed(x, count)
        if groups is not None:
            self._adapt(x, y, groups, step, 1 if is_whole else count)
        heads.copy_(y.view(heads.shape))

    def _normed(self, x: Tensor, count: int) -> Tensor:
        plan = self._plan
        weight = plan.weight if plan.weight.dim() == 1 else torch.ones_like(plan.weight[0])
        if plan.kind == "rms":
            y = rms_norm(x, weight, plan.eps)
        else:
            y = F.layer_norm(x, weight.shape, weight, plan.bias, plan.eps)
        return y if plan.weight.dim() == 1 else (y.view(-1, count, x.shape[-1]) * plan.weight).view(x.shape)

    def _adapt(self, x: Tensor, y: Tensor, groups: Groups, step: Step, count: int) -> None:
        """The ops of adapters, whose rows are here ``count`` heads each."""
        assert not groups.before, "no op changes the input of a norm"
        segments = [RowSegment(s.member, s.start * count, s.stop * count) for s in step.segments]
        for group in groups.after:
            group.apply(x, y, plan_rows(group.members, segments, x.device), self._site)


class Projection:
    """Linear maps of one input, their outputs side by side."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.names = [place.name for place in places]
        self._sites = [BaseSite(place.module) for place in places]
        modules = [place.module for place in places]
        ends = list(accumulate(_width(module) for module in modules))
        self._slices = [slice(end - _width(module), end) for end, module in zip(ends, modules, strict=True)]
        self.out_features = ends[-1]
        self._bias = _joined_bias(modules)
        self._weight = _joined_weight(modules)
        self._parts = (
            [_own_weight(module) for module in modules]
            if self._weight is None
            else [self._weight.rows(s.start, s.stop) for s in self._slices]
        )

    def __call__(self, x: Tensor, step: Step, *, at_head: bool = False) -> Tensor:
        """The outputs for ``x`` [T, in]; wider at the head in a batch with adapters that brought tokens."""
        if not step.groups:
            return self._all(x)
        found = [step.groups.get(name) for name in self.names]
        if not any(found):
            return self._all(x)
        y = self._given(x, found, step, at_head)
        own = self.out_features if at_head else 0
        if step.head_width > own > 0:
            y = F.pad(y, (0, step.head_width - own))  # for tokens that adapters brought
        for groups, site, part in zip(found, self._sites, self._slices, strict=True):
            if groups is not None:
                change_output(x, y if own else y[:, part], groups, step, site, at_head=at_head, own=own)
        return y

    def _given(self, x: Tensor, found: Sequence[Groups | None], step: Step, at_head: bool) -> Tensor:
        """The base's product, of an input that adapters may have changed for one map or the other."""
        if not any(groups is not None and groups.before for groups in found):
            return self._all(x)
        y = x.new_empty(len(x), self.out_features)
        for groups, site, part, weight in zip(found, self._sites, self._slices, self._parts, strict=True):
            given = x if groups is None else changed_input(x, groups, step, site, at_head=at_head)
            y[:, part] = linear(given, weight, None if self._bias is None else self._bias[part])
        return y

    def _all(self, x: Tensor) -> Tensor:
        if self._weight is not None:
            return linear(x, self._weight, self._bias)
        y = torch.cat([linear(x, weight) for weight in self._parts], -1)
        return y if self._bias is None else y.add_(self._bias)


def _width(module: nn.Module) -> int:
    assert isinstance(module, nn.Linear)
    return module.out_features


def _stored(module: nn.Module) -> StoredWeight:
    return StoredWeight(module.get_parameter("weight").data)


def _own_weight(module: nn.Module) -> PackedWeight:
    return pack([_stored(module)])


def _joined_weight(modules: Sequence[nn.Module]) -> PackedWeight | None:
    """The weights of ``modules`` in one piece, which takes the place of their own; None when they do not join."""
    if len(modules) == 1:
        return _own_weight(modules[0])
    weights = [_stored(module) for module in modules]
    if any(w.out_features % ROWS for w in weights[:-1]) or len({w.codes.dtype for w in weights}) > 1:
        return None
    joined, end = pack(weights), 0
    for module, weight in zip(modules, weights, strict=True):
        start, end = end, end + weight.out_features
        module.get_parameter("weight").data = joined.stored.codes[start:end]
    return joined


def _joined_bias(modules: Sequence[nn.Module]) -> Tensor | None:
    biases = [getattr(module, "bias", None) for module in modules]
    if all(bias is None for bias in biases):
        return None
    return torch.cat([
        torch.zeros(_width(module)) if bias is None else bias.detach().float()
        for module, bias in zip(modules, biases, strict=True)
    ])  # fmt: skip
