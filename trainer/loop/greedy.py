"""How well the adapter answers: greedy answers to validation prompts, compared with the responses wanted.

Every token comes from a full forward pass, as in training: peft's own generation treats each method in another way.
That is slower than a cache for long answers; it is meant for a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.base_model import Base
from trainer.data.messages import TokenQuestion
from trainer.loop.loss import LabelledHead

_BATCH = 8
_SLACK = 8  # tokens an answer may be longer than the one wanted before it is cut


def exact_match(
    model: Any, head: LabelledHead, base: Base, questions: Sequence[TokenQuestion], context: int | None = None
) -> float:
    """The share of ``questions`` answered exactly, but for white space around the answer."""
    answers = texts_of(model, head, base, questions, lambda longest: longest + _SLACK, context=context)
    pairs = zip(answers, questions, strict=True)
    return sum(answer.strip() == question.response.strip() for answer, question in pairs) / len(questions)


def texts_of(
    model: Any,
    head: LabelledHead,
    base: Base,
    questions: Sequence[TokenQuestion],
    limit: Callable[[int], int],
    *,
    context: int | None = None,
) -> list[str]:
    """Greedy answers as a server hands them out. ``limit``: how many tokens one may have, by those of the longest
    response beside which it is given; ``context``: how many with its prompt."""
    texts: list[str] = []
    for at in range(0, len(questions), _BATCH):
        batch = questions[at : at + _BATCH]
        wanted = [question.response.strip() for question in batch]
        longest = max(len(base.tokenizer(text, add_special_tokens=False).input_ids) for text in wanted)
        answers = greedy(model, head, base, [question.input_ids for question in batch], limit(longest), context=context)
        texts += [base.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    return texts


Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]  # answers and the responses wanted


@dataclass(frozen=True, eq=False)
class ScoredAnswers:
    """What is made of a model's answers at each evaluation. ``max_tokens`` None: half as many again as the longest
    response has, and a few. ``context``: tokens of a prompt and its answer at most."""

    base: Base
    questions: Sequence[TokenQuestion]
    score: Score
    max_tokens: int | None = None
    context: int | None = None

    def of(self, model: Any, head: LabelledHead) -> dict[str, float]:
        """The scores of ``model``, by name. Several processes all answer all questions: none may wait for another."""

        def limit(longest: int) -> int:
            return self.max_tokens or longest * 3 // 2 + 2 * _SLACK

        answers = texts_of(model, head, self.base, self.questions, limit, context=self.context)
        return self.score(answers, [question.response for question in self.questions])


@torch.no_grad()
def greedy(
    model: Any,
    head: LabelledHead,
    base: Base,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    context: int | None = None,
) -> list[list[int]]:
    """Greedy answers to ``prompts`` of token ids, each up to its end token, which is left out.

    With its prompt none has more than ``context`` tokens: not every base can look at one more.
    """
    model.eval()
    collate = base.collator()
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        running = [i for i in running if context is None or len(prompts[i]) + len(answers[i]) < context]
        if not running:
            break
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
    return answers
