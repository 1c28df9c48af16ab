"""Rows of the embedding and of the output head that an adapter brings for single tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.ops.base import Op, Site


@dataclass(frozen=True, eq=False)
class EmbedRows(Op):
    """Embeddings of single tokens; stands at the input embedding, whose input rows are token ids.

    Semantics: where the token is ``ids[j]``, ``y`` is what the base's embedding computes with ``rows[j]`` in the place
    of its own (some scale it). Other tokens are left alone; ids may lie beyond the base's vocabulary.
    Shape: ``ids`` [k], sorted, no id twice; ``rows`` [k, hidden_size].
    """

    ids: Tensor
    rows: Tensor

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        assert site is not None, "needs the base's module"
        for j, token in enumerate(self.ids.tolist()):
            if int(x[0]) == token:
                return site.call({"weight": self.rows.float()}, torch.tensor([j]))[0]
        return y

    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.batched."""
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

    def reference(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.reference."""
        missing = max(0, int(self.ids.max()) + 1 - len(y))
        new = torch.cat([y, y.new_full((missing,), -torch.inf)])
        for token, row in zip(self.ids.tolist(), self.rows.float(), strict=True):
            new[token] = row @ x
        return new

    def batched(self, x: Tensor, y: Tensor, site: Site | None) -> Tensor:
        """See Op.batched."""
        logits = torch.bmm(x, self.rows.mT)  # [G, n, k]
        return y.scatter(2, self.ids[:, None].expand_as(logits), logits)

    def columns(self, base: int, given: int) -> int:
        """See Op.columns."""
        return given
