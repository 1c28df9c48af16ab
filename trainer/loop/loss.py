"""The training loss, with the output head run only where there is something to learn.

Prompts are most of the tokens and the head is a large part of a small model: on the default base this halves the work
of the head and its memory. The loss is the same number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bases.architecture import has_own_code
from trainer.data.encoding import IGNORED


class LabelledHead:
    """Lets a model's output head see the hidden states that predict a label, and no others.

    Semantics: logits[k] = head(hidden[row(k), column(k)]) for the k-th position, row by row, whose next token has a
    label. Models that compute logits otherwise are handled by picking from their full logits.
    Shape: hidden [batch, virtual + length, hidden_size]; logits [labelled, vocab_size].
    """

    def __init__(self, model: Any) -> None:
        self._labels: Tensor | None = None
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        is_own = any(map(has_own_code, model.modules()))  # whose states may be laid out as its code likes
        if isinstance(head, nn.Module) and not is_own:
            head.register_forward_pre_hook(self._before_head)

    def logits(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Logits [labelled, vocab_size] of ``model`` where ``labels`` [batch, length] has something to predict."""
        self._labels = labels
        try:
            out: Tensor = model(**inputs, use_cache=False).logits
        finally:
            self._labels = None
        return out if out.dim() == 2 else _pick(out, labels)

    def _before_head(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._labels is None or not args or args[0].dim() != 3:
            return None
        return (_pick(args[0], self._labels), *args[1:])


def labelled_targets(labels: Tensor) -> Tensor:
    """The labels [labelled] that are predicted, row by row, of ``labels`` [batch, length]."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORED]


def token_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy [labelled] in float32 of ``logits`` [labelled, vocab_size].

    ``smoothing`` is the share of the target that is spread over the whole vocabulary.
    """
    return F.cross_entropy(logits.float(), labelled_targets(labels), reduction="none", label_smoothing=smoothing)


def _pick(states: Tensor, labels: Tensor) -> Tensor:
    """States [labelled, width] of ``states`` [batch, virtual + length, width] that predict a label."""
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    virtual = states.shape[1] - labels.shape[1]  # prompt tuning puts its own rows first
    flat = rows * states.shape[1] + virtual + columns
    return states.reshape(-1, states.shape[-1]).index_select(0, flat)


def row_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of losses [batch] and number of labels [batch] of each row."""
    wanted = labels[:, 1:] != IGNORED
    sums = torch.zeros(labels.shape[0], device=logits.device)
    sums.index_add_(0, wanted.nonzero(as_tuple=True)[0], token_losses(logits, labels))
    return sums, wanted.sum(dim=1)
