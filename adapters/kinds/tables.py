"""Whole tables of embeddings and output heads that a package brings, and the single rows by which they differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.limits import DEFAULT_LIMITS
from adapters.names import shown
from adapters.ops import Op
from adapters.ops.embed_rows import EmbedRows, HeadRows
from adapters.ops.replace import ReplaceLinear, ReplaceParameters


@dataclass(frozen=True, eq=False)
class Table:
    """A table in the place of the base's: ``weight`` [size, hidden_size], and its rows that are not the base's."""

    weight: Tensor
    ids: Tensor
    rows: Tensor

    @property
    def size(self) -> int:
        """Token ids that the table knows."""
        return len(self.weight)

    @property
    def is_mostly_new(self) -> bool:
        """Whether the table itself weighs less than a list of its changes, or little more."""
        return 2 * len(self.ids) > self.size


def base_size(module: str, base: BaseSpec) -> int:
    """Token ids that the base's embedding or head knows."""
    return base.parameters[f"{module}.weight"][0]


def check_size(name: str, size: int, module: str, base: BaseSpec) -> None:
    """PackageError when a vocabulary grew beyond reason: every row of a batch is as wide as the largest of it."""
    most = base_size(module, base) + DEFAULT_LIMITS.max_added_tokens
    if size > most:
        raise PackageError(f"tensor {shown(name)} asks for a vocabulary of {size} tokens; at most {most} are read")


def compare_table(name: str, weight: Tensor, module: str, base: BaseSpec) -> Table:
    """``weight``, saved for the embedding or the head ``module``, held against the base's own.

    A row is the base's when it is equal in the type that it is saved or served in: saving rounds. Raises PackageError.
    """
    size = len(weight) if weight.dim() else 0
    check_size(name, size, module, base)
    hint = "the shape suggests that the adapter was made for another base"
    expect_shape(name, weight, (size, base.hidden_size), hint)
    own = base.weight(base.head if base.tied else module)
    both = min(len(own), len(weight))
    is_same = _is_same(weight[:both], own[:both])
    ids = torch.cat([torch.nonzero(~is_same)[:, 0], torch.arange(both, len(weight))])
    full = weight.float()
    return Table(full, ids, full[ids])


def table_ops(table: Table, bias: Tensor | None, module: str, base: BaseSpec) -> tuple[Op, ...]:
    """The ops that let ``module``, embedding or head, compute with ``table``; none where it is the base's.

    ``bias`` is what the head adds, if anything: then the whole head is replaced, as rows bring none.
    """
    is_changed_bias = bias is not None and not torch.equal(bias, base.biases[module].to("cpu", torch.float32))
    if not len(table.ids) and not is_changed_bias:
        return ()
    if module == base.head:
        whole = table.is_mostly_new or bias is not None
        return (ReplaceLinear(table.weight, bias) if whole else HeadRows(table.ids, table.rows),)
    if table.is_mostly_new:
        return (ReplaceParameters({"weight": table.weight}),)
    return (EmbedRows(table.ids, table.rows),)


def _is_same(saved: Tensor, own: Tensor) -> Tensor:
    """Which rows are equal, [n] bool."""
    exact = (saved.float() == own).all(1)
    as_saved = (saved == own.to(saved.dtype)).all(1)
    as_served = (saved.bfloat16().float() == own).all(1)
    return exact | as_saved | as_served
