"""How well the adapter answers: greedy answers to validation prompts, compared with the responses wanted.

Every token comes from a full forward pass, as in training: peft's own generation treats each method in another way.
That is slower than a cache for long answers; it is meant for a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.base_model import Base
from trainer.data.messages import TokenQuestion
from trainer.loop.loss import LabelledHead

_BATCH = 8
_SLACK = 8  # tokens an answer may be longer than the one wanted before it is cut


def exact_match(model: Any, head: LabelledHead, base: Base, questions: Sequence[TokenQuestion]) -> float:
    """The share of ``questions`` answered exactly, but for white space around the answer."""
    hits = 0
    for at in range(0, len(questions), _BATCH):
        batch = questions[at : at + _BATCH]
        wanted = [question.response.strip() for question in batch]
        limit = max(len(base.tokenizer(text, add_special_tokens=False).input_ids) for text in wanted) + _SLACK
        answers = greedy(model, head, base, [question.input_ids for question in batch], limit)
        texts = [base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        hits += sum(text == want for text, want in zip(texts, wanted, strict=True))
    return hits / len(questions)


@torch.no_grad()
def greedy(
    model: Any, head: LabelledHead, base: Base, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers to ``prompts`` of token ids, each up to its end token, which is left out."""
    model.eval()
    collate = base.collator()
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        batch = collate.asking([prompts[i] for i in running], [answers[i] for i in running])
        batch.pop("num_tokens", None)
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        chosen = head.logits(model, inputs, labels).argmax(dim=-1).tolist()
        for i, token in zip(tuple(running), chosen, strict=True):
            if token in base.end_ids:
                running.remove(i)
            else:
                answers[i].append(token)
        if not running:
            break
    return answers
