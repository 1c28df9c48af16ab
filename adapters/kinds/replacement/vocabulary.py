"""Tables of embeddings and output heads that a package brings, the rows by which they differ from the base's, and how
many token ids the adapter reads and writes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.saved_adapter import OTHER_BASE, expect_shape
from adapters.limits import DEFAULT_LIMITS
from adapters.ops import Adapter, Op
from adapters.ops.embedding import EmbedRows, HeadRows
from adapters.ops.replace import ReplaceLinear, ReplaceParameters
from adapters.quoting import quote


@dataclass(frozen=True, eq=False)
class VocabularyTable:
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
    return base.parameters.get(f"{module}.weight", (base.vocab_size,))[0]


def check_size(name: str, size: int, module: str, base: BaseSpec) -> None:
    """PackageError when a vocabulary grew beyond reason: every row of a batch is as wide as the largest of it."""
    most = base_size(module, base) + DEFAULT_LIMITS.max_added_tokens
    if size > most:
        raise PackageError(f"tensor {quote(name)} asks for a vocabulary of {size} tokens; at most {most} are read")


def compare_table(name: str, weight: Tensor, module: str, base: BaseSpec) -> VocabularyTable:
    """``weight``, saved for the embedding or the head ``module``, held against the base's own.

    A row is the base's when it is equal in the type that it is saved or served in: saving rounds. Raises PackageError.
    """
    size = len(weight) if weight.dim() else 0
    check_size(name, size, module, base)
    expect_shape(name, weight, (size, base.hidden_size), OTHER_BASE)
    own = base.weight(base.head if base.tied else module)
    both = min(len(own), len(weight))
    is_same = _is_same(weight[:both], own[:both])
    ids = torch.cat([torch.nonzero(~is_same)[:, 0], torch.arange(both, len(weight))])
    full = weight.float()
    return VocabularyTable(full, ids, full[ids])


def table_ops(table: VocabularyTable, bias: Tensor | None, module: str, base: BaseSpec) -> tuple[Op, ...]:
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


def with_sizes(base: BaseSpec, sizes: Mapping[str, int]) -> BaseSpec:
    """``base`` as it was resized for a training that left embedding and head with ``sizes``."""
    linears = {name: (sizes[name], shape[1]) for name, shape in base.linears.items() if name in sizes}
    size = sizes.get(base.embedding, base.vocab_size)
    return replace(base, vocab_size=size, linears={**base.linears, **linears}) if sizes else base


def with_vocabulary(adapter: Adapter, sizes: Mapping[str, int], base: BaseSpec) -> Adapter:
    """``adapter`` with its vocabulary, from the ``sizes`` of whole tables and the rows of single tokens.

    Raises PackageError when tokens are left without a row, or could be written and not be read again.
    """
    if not base.embedding:
        return adapter
    reads = _size(base.embedding, adapter.ops.get(base.embedding, ()), sizes, base)
    writes = _size(base.head, adapter.ops.get(base.head, ()), sizes, base)
    if writes > reads and writes > base_size(base.head, base):
        raise PackageError(
            f"the output head has rows for {writes} tokens, and the embedding for {reads}: tokens that the adapter "
            "writes must be readable; train the embeddings of the new tokens too"
        )
    return replace(
        adapter,
        vocab_size=None if reads == base_size(base.embedding, base) else reads,
        num_logits=None if writes == base_size(base.head, base) else writes,
    )


def _size(module: str, ops: Sequence[Op], sizes: Mapping[str, int], base: BaseSpec) -> int:
    size = sizes.get(module, base_size(module, base))
    for op in ops:
        if isinstance(op, EmbedRows | HeadRows):
            new = [token for token in op.ids.tolist() if token >= size]
            check_size(module, max(new, default=-1) + 1, module, base)
            if new and new != list(range(size, size + len(new))):
                lost = next(token for token in range(size, new[-1]) if token not in new)
                raise PackageError(
                    f"the package holds a row of {quote(module)} for token {new[-1]} and none for token {lost}, which "
                    f"is also beyond the {size} tokens of the base {quote(base.name)}: train all tokens that were "
                    "added, or save with save_embedding_layers=True"
                )
            size += len(new)
    return size
