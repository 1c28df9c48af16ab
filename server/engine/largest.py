"""The few largest of many values per row, faster than a general top-k over the vocabulary."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

BLOCK = 64


def as_blocks(values: Tensor, fill: float) -> Tensor:
    """``values`` [n, m] as [n, blocks, BLOCK]; a last block that is not full is filled up."""
    missing = -values.shape[1] % BLOCK
    padded = F.pad(values, (0, missing), value=fill) if missing else values
    return padded.view(len(values), -1, BLOCK)


def largest(blocks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` largest values of each row of ``blocks`` [n, blocks, BLOCK], descending, and their places.

    Both [n, width], or [n, all] if there are fewer. They lie in the ``width`` blocks with the largest maxima: looking
    only there is what makes it fast. Which of several equal values at the end are found is unspecified, but depends on
    the row and ``width`` only.
    """
    if width >= blocks.shape[1]:
        values, places = blocks.flatten(1).topk(min(width, blocks.shape[1] * BLOCK))
        return values, places
    chosen = blocks.amax(dim=-1).topk(width).indices
    values, inside = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(width)
    return values, chosen.gather(1, inside // BLOCK) * BLOCK + inside % BLOCK
