"""Retention probes: what the base could do before training, asked of it and of the adapter.

Short questions of our own (``includes``) and the perplexity of general text of our own; from folders of the published
sets also grade-school mathematics (``gsm8k_accuracy``) and the perplexity of the solutions of HumanEval, whose code is
not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.conversations import Message
from trainer.data.questions import Question
from trainer.errors import EvaluationError
from trainer.evaluation.retention.items import ITEMS
from trainer.evaluation.retention.texts import TEXTS

_SHORT_ANSWER, _SOLUTION = 48, 320  # tokens
PUBLISHED = ("gsm8k", "humaneval")


@dataclass(frozen=True)
class Probe:
    """A set of questions of one kind with its metric. ``max_tokens`` is for its answers."""

    name: str
    questions: tuple[Question, ...]
    metric: str
    max_tokens: int


def probes(folders: Mapping[str, Path], rows: int, *, chat: bool) -> list[Probe]:
    """Our own probes, and ``rows`` rows of each published set in ``folders`` (by name). ``chat``: ask as messages.

    Raises EvaluationError for an unknown set, DataError for a folder that does not hold it.
    """
    own = [
        Probe("questions", tuple(_question(text, accept, chat) for text, accept in ITEMS), "includes", _SHORT_ANSWER)
    ]
    own.append(Probe("text", tuple(Question(None, "", text) for text in TEXTS), "perplexity", 1))
    return own + [_published(name, folder, rows, chat) for name, folder in folders.items()]


def _question(text: str, accept: Sequence[str], chat: bool) -> Question:
    row: dict[str, Any] = {"accept": list(accept)}
    if chat:
        return Question((Message("user", text),), None, accept[0], row)
    return Question(None, f"Question: {text}\nAnswer:", accept[0], row)


def _published(name: str, folder: Path, rows: int, chat: bool) -> Probe:
    from trainer.data.recipes import RECIPES

    if name not in PUBLISHED:
        raise EvaluationError(f"there is no retention probe {name!r}; choose from {', '.join(PUBLISHED)}")
    chosen = islice(RECIPES[name].rows(folder, "test"), rows)
    if name == "humaneval":
        questions = [Question(None, row["prompt"], row["response"], row) for row in chosen]
        return Probe(name, tuple(questions), "perplexity", 1)
    asked = [(row["prompt"], row["response"], row) for row in chosen]
    if chat:
        found = [Question((Message("user", prompt),), None, response, row) for prompt, response, row in asked]
    else:
        found = [Question(None, f"Question: {prompt}\nAnswer:", response, row) for prompt, response, row in asked]
    return Probe(name, tuple(found), "gsm8k_accuracy", _SOLUTION)
