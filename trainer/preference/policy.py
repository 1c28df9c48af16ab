"""A model with any adapter of ours, as trl's trainers ask for one, and what it says of the data: log-probabilities.

trl patches a fused output head into models that it knows, and finds the reference by switching peft's adapters off.
Neither works for prefix tuning and other methods of our own, and both work around the output head. Here the model's own
forward is used, with its head only where something is labelled, whatever stands in between. The reference, which is the
model that a run begins with, is asked once: so no second model is in memory, the reference is the same for every
method, also for one that cannot be switched off, and a step costs no pass of the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.base_model import Base
from trainer.data.batches import Collator
from trainer.data.encoding import IGNORED, Example
from trainer.loop.loss import LabelledHead, token_losses
from trainer.methods.own_model import OwnModel, enable_checkpointing
from trainer.preference.preference_data import JudgedIds, PairIds


class WrappedModel(nn.Module):
    """``model``, with a configuration of its own: trl writes the pad token into it."""

    def __init__(self, model: Any, base: Base) -> None:
        super().__init__()
        self.model = model
        self.config = copy.deepcopy(base.model.config)

    def add_model_tags(self, tags: Any) -> None:
        """trl's marks for a hub; ours is no model to upload."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """As the model's own."""
        enable_checkpointing(self.model, **arguments)

    gradient_checkpointing_enable = activation_checkpointing_enable


_CHUNK = 64  # tokens whose whole distributions are looked at together, beside the ones that have a gradient


@dataclass
class TokenOutputs:
    """Each [batch, length - 1], for the token behind each position; 0 where there is no label.

    ``log_probs`` has a gradient; ``entropy`` (of the distribution), ``mean_logits`` (over the vocabulary) and
    ``is_top1`` (whether the token is the likeliest) are for trl's metrics.
    """

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


class PolicyModel(WrappedModel):
    """``model`` behind the interface of trl's trainers. Logits are divided by ``temperature``, as in sampling."""

    def __init__(self, model: Any, base: Base, temperature: float = 1.0) -> None:
        super().__init__(model, base)
        self._temperature = temperature
        self.head = LabelledHead(model)
        self.generation_config = copy.deepcopy(getattr(base.model, "generation_config", None))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, fused_lm_head: bool = True, **_: Any
    ) -> TokenOutputs:
        """Score the tokens that ``labels`` [batch, length] holds; it is IGNORED elsewhere."""
        logits = self.head.logits(self.model, {"input_ids": input_ids, "attention_mask": attention_mask}, labels)
        logits = logits / self._temperature if self._temperature != 1.0 else logits
        wanted = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][wanted]

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(wanted.shape).masked_scatter(wanted, values)

        parts = [
            _logit_statistics(*part)
            for part in zip(torch.split(logits.detach(), _CHUNK), torch.split(targets, _CHUNK), strict=True)
        ]
        entropy, mean_logits, is_top1 = (torch.cat(column) for column in zip(*parts, strict=True))
        return TokenOutputs(
            spread(-token_losses(logits, labels)), spread(entropy), spread(mean_logits), spread(is_top1)
        )

    is_gradient_checkpointing = False  # trl would switch it off to generate; without, the layers do it themselves

    def generate(self, **arguments: Any) -> Any:
        """As the model's own; the hooks of methods that are no peft model are in their base."""
        model = self.model.base_model if isinstance(self.model, OwnModel) else self.model
        return model.generate(**arguments)

    def state_dict(self, *_args: Any, **_kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Nothing: checkpoints are written by parameter name (``trainer.loop.checkpoint``)."""
        return {}


@torch.no_grad()
def answer_log_probs(
    model: Any, head: LabelledHead, rows: Sequence[tuple[list[int], list[int]]], pad_id: int, batch_size: int
) -> list[Tensor]:
    """Log-probabilities [tokens of the answer] on the CPU for each (prompt ids, answer ids) of ``rows``."""
    model.eval()
    collate = Collator(pad_id)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for at in range(0, len(order), batch_size):
        indices = order[at : at + batch_size]
        batch = collate([_example(*rows[i]) for i in indices])
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        flat = -token_losses(head.logits(model, inputs, labels), labels).cpu()
        for i, part in zip(indices, torch.split(flat, [len(rows[i][1]) for i in indices]), strict=True):
            out[i] = part
    return out


def _example(prompt: list[int], answer: list[int]) -> Example:
    return Example((*prompt, *answer), (*[IGNORED] * len(prompt), *answer))


def _logit_statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, mean and whether the target is the likeliest, each [tokens], of ``logits`` [tokens, vocabulary]."""
    plain = logits.float()
    mean, top = plain.mean(-1), plain.argmax(-1) == targets
    shares = plain.log_softmax(-1)
    return -(shares.exp() * shares).sum(-1), mean, top


Table = list[dict[str, Any]]


class Scorer:
    """Sums of log-probabilities of answers by ``model``."""

    def __init__(self, model: Any, head: LabelledHead, base: Base, batch_size: int) -> None:
        self._model, self._head, self._pad_id, self._batch_size = model, head, base.pad_id, batch_size

    def pairs(self, rows: Sequence[PairIds], ld_alpha: float | None = None) -> list[tuple[float, float]]:
        """(chosen, rejected) of each of ``rows``; ``ld_alpha`` weighs the tokens behind the shorter one's length."""
        both = [(row.prompt, answer) for row in rows for answer in (row.chosen, row.rejected)]
        parts = answer_log_probs(self._model, self._head, both, self._pad_id, self._batch_size)
        out = []
        for chosen, rejected in zip(parts[::2], parts[1::2], strict=True):
            shared = min(len(chosen), len(rejected))
            out.append((_weighed(chosen, shared, ld_alpha), _weighed(rejected, shared, ld_alpha)))
        return out

    def answers(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Of each (prompt, answer)."""
        parts = answer_log_probs(self._model, self._head, rows, self._pad_id, self._batch_size)
        return [float(part.sum()) for part in parts]


def pair_table(rows: Sequence[PairIds], scorer: Scorer, ld_alpha: float | None) -> Table:
    """The columns that trl's DPOTrainer reads."""
    return [
        {
            "prompt_ids": row.prompt,
            "chosen_ids": row.chosen,
            "rejected_ids": row.rejected,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        for row, (chosen, rejected) in zip(rows, scorer.pairs(rows, ld_alpha), strict=True)
    ]


def judged_table(rows: Sequence[JudgedIds], scorer: Scorer, *, kl_batch: int | None) -> Table:
    """The columns that trl's KTOTrainer reads.

    With ``kl_batch``, every prompt also gets the answer of the row before it in its batch of that size: trl estimates
    the distance from the reference on such mismatched pairs, and trains the rows in their order.
    """
    table: Table = [
        {"prompt_ids": row.prompt, "completion_ids": row.completion, "label": row.good, "ref_logps": score}
        for row, score in zip(rows, scorer.answers([(row.prompt, row.completion) for row in rows]), strict=True)
    ]
    if kl_batch:
        for at in range(0, len(rows), kl_batch):
            batch = range(at, min(at + kl_batch, len(rows)))
            for i in batch:
                table[i]["KL_completion_ids"] = rows[i - 1 if i > at else batch[-1]].completion
        others = scorer.answers([(row["prompt_ids"], row["KL_completion_ids"]) for row in table])
        for row, score in zip(table, others, strict=True):
            row["ref_KL_logps"] = score
    return table


def _weighed(log_probs: Tensor, shared: int, ld_alpha: float | None) -> float:
    tail = log_probs[shared:].sum() * (1.0 if ld_alpha is None else ld_alpha)
    return float(log_probs[:shared].sum() + tail)
