"""Rows that use other weights than the base's: fully trained modules, and frozen-but-for-the-last-layers adapters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from adapters.ops.op import Op, Site
from hotkernels.products import matmul


@dataclass(frozen=True, eq=False)
class ReplaceLinear(Op):
    """Another linear map in the place of the base's.

    Semantics: ``y = x @ weight.T + bias``. Of an output head with fewer rows than the batch has columns, the columns
    left over are zero; they are no tokens of the adapter, and the runner masks them.
    Shape: ``weight`` [out_features, in_features]; ``bias`` [out_features] or None.
    """

    STACKS: ClassVar[bool] = False

    weight: Tensor
    bias: Tensor | None = None

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        out = self.weight.float() @ x
        return out if self.bias is None else out + self.bias.float()

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        new = matmul(x, self.weight.mT)
        if self.bias is not None:
            new += self.bias[0]
        return F.pad(new, (0, y.shape[-1] - new.shape[-1])) if new.shape[-1] < y.shape[-1] else new

    @override
    def columns(self, base: int, given: int) -> int:
        return given


@dataclass(frozen=True, eq=False)
class ReplaceParameters(Op):
    """The base's own module with other parameters; for modules that are no linear map (norms, embeddings).

    Semantics: ``y = module(x)``, computed with ``parameters`` in the place of the base's of the same name.
    Shape: as the module's own parameters.
    """

    STACKS: ClassVar[bool] = False
    HAS_EXACT_ROWS: ClassVar[bool] = False  # torch computes

    parameters: Mapping[str, Tensor]

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        assert site is not None, "needs the base's module"
        found = site.call({name: tensor.float() for name, tensor in self.parameters.items()}, self._rows(x[None]))
        return found[0]

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        assert site is not None, "needs the base's module"
        return site.call({name: tensor[0] for name, tensor in self.parameters.items()}, self._rows(x))

    @override
    def tensors(self) -> list[Tensor]:
        return list(self.parameters.values())

    @override
    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        return type(self)({name: fn(tensor) for name, tensor in self.parameters.items()})

    @override
    def signature(self) -> Hashable:
        return type(self), *((name, tuple(t.shape)) for name, t in self.parameters.items())

    @classmethod
    @override
    def stack(cls, ops: Sequence[Self]) -> Self:
        (op,) = ops
        return op.map(lambda t: t[None])

    @staticmethod
    def _rows(x: Tensor) -> Tensor:
        """Token ids come with a dimension of one behind them."""
        return x if x.is_floating_point() else x[..., 0]
