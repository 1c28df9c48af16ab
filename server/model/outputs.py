"""What the model computes in one step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """``logits`` [n, width] of all sequences' ``logits_at``; ``hidden``: of every sequence with ``hidden_at``, in turn.

    Shape: [len(hidden_at), hidden_size], or as many columns as the adapter's head has outputs.
    """

    logits: Tensor
    hidden: list[Tensor]
