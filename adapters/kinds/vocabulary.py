"""How many token ids an adapter reads and writes, where its package brings rows beyond the base's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adapters.base import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.tables import base_size, check_size
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.embed_rows import EmbedRows, HeadRows


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
                    f"the package holds a row of {shown(module)} for token {new[-1]} and none for token {lost}, which "
                    f"is also beyond the {size} tokens of the base {shown(base.name)}: train all tokens that were "
                    "added, or save with save_embedding_layers=True"
                )
            size += len(new)
    return size
