"""What the reference says of the data: log-probabilities by the model that a run begins with.

They are computed once. So no second model is in memory, the reference is the same for every method, also for one that
cannot be switched off, and a step costs no pass of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trainer.base_model import Base
from trainer.loop.loss import LabelledHead
from trainer.preference.policy import answer_log_probs
from trainer.preference.tokens import JudgedIds, PairIds

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
