"""What every op is: tensors, a specification as a naive loop, and a form that runs the rows of many adapters at once.

A new op is a frozen dataclass in the file of its sort of change, whose docstring has its ``Semantics:`` and
``Shape:``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor
from typing_extensions import override

from hotkernels.row_ops import RowOp


class Site(Protocol):
    """The module that an op acts on."""

    def call(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """What the base's own module computes for ``x`` with some of its parameters replaced."""


@dataclass(frozen=True, eq=False)
class Op(ABC):
    """One thing that an adapter does at a module of the base.

    ``x`` are the module's input rows (token ids at an embedding, [n, 1]), ``y`` its output rows. An op on the input
    side turns ``x`` into what the base is given instead; one on the output side turns ``y`` into the module's output.
    All ops of an adapter see the original ``x``, except input ops, which follow one another.

    Fields are tensors, or constants that compare by value. Ops of one type whose constants and shapes are equal can
    be stacked: the result is an op of the same type whose tensors have one more dimension in front, the member.
    """

    SIDE: ClassVar[Literal["input", "output"]] = "output"
    # Whether members are copied into one stack and run together. False for ops that weigh too much to copy.
    STACKS: ClassVar[bool] = True
    # Whether with native kernels a row comes out the same to the last bit, whatever other rows there are.
    HAS_EXACT_ROWS: ClassVar[bool] = True
    # Fields whose tensors other adapters may have as well, number for number.
    SHARED: ClassVar[tuple[str, ...]] = ()
    # The tensor that all that is added to ``y`` is proportional to; empty: the op does something else than add, or what
    # it adds depends on ``y``, so that it cannot be weighted and summed with those of other adapters.
    PROPORTIONAL_TO: ClassVar[str] = ""

    @abstractmethod
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """The specification: the new row, in float32. Shape: ``x`` [in], ``y`` [out], of one row, float32."""

    @abstractmethod
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """The new rows, from a stacked op. Shape: ``x`` [G, n, in], ``y`` [G, n, out], both in the op's dtype.

        On the input side ``x`` is what is to be changed, and ``y`` is the same tensor.
        """

    def tensors(self) -> list[Tensor]:
        """Every tensor of the op."""
        return [value for value in self._values().values() if isinstance(value, Tensor)]

    def shared(self) -> list[Tensor]:
        """Those of them that other adapters may have as well."""
        return [getattr(self, name) for name in self.SHARED]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same op with ``fn`` applied to every tensor."""
        changed = {name: fn(value) for name, value in self._values().items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def signature(self) -> Hashable:
        """Ops of equal signature can be stacked."""
        return type(self), *((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in self._values().values())

    @classmethod
    def stack(cls, ops: Sequence[Self]) -> Self:
        """One op of all ``ops``, which share a signature; of a single op it is a view."""
        first = ops[0]
        if len(ops) == 1:
            return first.map(lambda t: t[None])
        names = [name for name, value in first._values().items() if isinstance(value, Tensor)]
        return replace(first, **{name: torch.stack([getattr(op, name) for op in ops]) for name in names})

    def member(self, index: int) -> Self:
        """The part of a stacked op that is member ``index``, as a stack of one."""
        return self.map(lambda t: t[index : index + 1])

    def times(self, weight: float) -> Self:
        """The op that adds ``weight`` times as much, computed in float32."""
        assert self.PROPORTIONAL_TO, f"{type(self).__name__} does not add"
        return replace(self, **{self.PROPORTIONAL_TO: _wide(getattr(self, self.PROPORTIONAL_TO)) * weight})

    def columns(self, base: int, given: int) -> int:
        """How many of the ``given`` columns of ``y`` the op acts on, at a module that has ``base`` of them itself.

        They differ at the output head in a batch with adapters that bring tokens of their own. By default ops know
        of no such tokens.
        """
        return base

    def row_op(self) -> RowOp | None:
        """The same as an op on rows that the library runs beside those of other kinds; None where it has none such."""
        return None

    def _values(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else tensor.float()


@dataclass(frozen=True, eq=False)
class AddOp(Op):
    """An op on the output side that adds to ``y``."""

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """What is added, from a stacked op. Shape: ``x`` [G, n, in]; the result broadcasts to [G, n, out]."""

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        return y + self.update(x)

    def add_(self, x: Tensor, y: Tensor) -> None:
        """Add to ``y`` in place, for a stack of one. Shape: ``x`` [n, in], ``y`` [n, out]."""
        y += self.update(x[None])[0]
