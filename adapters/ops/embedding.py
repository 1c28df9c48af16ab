"""The input embedding and the output head: low-rank updates, and rows for single tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding
from typing_extensions import override

from adapters.ops.op import AddOp, Op, Site
from hotkernels.products import matmul


@dataclass(frozen=True, eq=False)
class LowRankEmbedding(AddOp):
    """A low-rank update of the input embedding, whose input rows are token ids.

    Semantics: ``y += a[token] @ b``; the scale is folded into ``b`` at load. Ids beyond the vocabulary (an adapter's
    own tokens, which other ops fill in) are taken for its nearest one.
    Shape: ``a`` [vocab_size, r]; ``b`` [r, hidden_size].
    """

    STACKS: ClassVar[bool] = False  # a few rows of a table are read, which is no reason to copy the table
    PROPORTIONAL_TO: ClassVar[str] = "b"

    a: Tensor
    b: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        token = min(max(int(x[0]), 0), len(self.a) - 1)
        return y + self.a[token].float() @ self.b.float()

    @override
    def update(self, x: Tensor) -> Tensor:
        tokens = x[0, :, 0].clamp(0, self.a.shape[1] - 1)
        return matmul(embedding(tokens, self.a[0])[None], self.b)


@dataclass(frozen=True, eq=False)
class EmbedRows(Op):
    """Embeddings of single tokens; stands at the input embedding, whose input rows are token ids.

    Semantics: where the token is ``ids[j]``, ``y`` is what the base's embedding computes with ``rows[j]`` in the place
    of its own (some scale it). Other tokens are left alone; ids may lie beyond the base's vocabulary.
    Shape: ``ids`` [k], sorted, no id twice; ``rows`` [k, hidden_size].
    """

    ids: Tensor
    rows: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        assert site is not None, "needs the base's module"
        for j, token in enumerate(self.ids.tolist()):
            if int(x[0]) == token:
                return site.call({"weight": self.rows.float()}, torch.tensor([j]))[0]
        return y

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        assert site is not None, "needs the base's module"
        members, count = self.ids.shape
        tokens = x[..., 0].contiguous()  # [G, n]
        place = torch.searchsorted(self.ids, tokens).clamp_(max=count - 1)
        is_mine = torch.gather(self.ids, 1, place) == tokens
        first = torch.arange(members, device=x.device)[:, None] * count
        new = site.call({"weight": self.rows.flatten(0, 1)}, place + first)
        return torch.where(is_mine[..., None], new.to(y.dtype), y)


@dataclass(frozen=True, eq=False)
class HeadRows(Op):
    """Rows of the output head for single tokens.

    Semantics: ``y[ids[j]] = rows[j] @ x`` (no bias is added); other logits are left alone. Ids may lie beyond the
    base's vocabulary: ``y`` is then wide enough for them.
    Shape: ``ids`` [k], sorted, no id twice; ``rows`` [k, hidden_size].
    """

    ids: Tensor
    rows: Tensor

    @override
    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        missing = max(0, int(self.ids.max()) + 1 - len(y))
        new = torch.cat([y, y.new_full((missing,), -torch.inf)])
        for token, row in zip(self.ids.tolist(), self.rows.float(), strict=True):
            new[token] = row @ x
        return new

    @override
    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        logits = matmul(x, self.rows.mT)  # [G, n, k]
        return y.scatter(2, self.ids[:, None].expand_as(logits), logits)

    @override
    def columns(self, base: int, given: int) -> int:
        return given
