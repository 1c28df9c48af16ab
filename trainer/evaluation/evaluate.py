"""Asks a served model all questions and scores its answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trainer.data.questions import Question
from trainer.errors import EvaluationError
from trainer.evaluation.asking import TOO_LONG, Asker, Reply
from trainer.evaluation.http import Connection
from trainer.evaluation.metrics import Case, Metric, find_metrics
from trainer.evaluation.scoring import row_values, score_rows
from trainer.evaluation.types import Answer, Endpoint, Evaluation, Progress

TIMEOUT_SECONDS = 300.0
_NOT_ASKED = "not asked"
T = TypeVar("T")


def evaluate(
    endpoint: Endpoint,
    questions: Sequence[Question],
    metrics: Sequence[str],
    *,
    max_tokens: int | None = None,
    concurrency: int = 8,
    timeout: float = TIMEOUT_SECONDS,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy answers of the model at ``endpoint`` to ``questions``, scored by ``metrics`` (names).

    ``max_tokens`` None: half as many again as the longest reference has. ``concurrency`` requests run at a time, each
    for at most ``timeout`` seconds. ``progress`` hears of requests done and requests in all. Raises EvaluationError.
    """
    wanted = find_metrics(metrics)
    if not questions:
        raise EvaluationError("there are no rows to evaluate on")
    options = _Options(max_tokens, concurrency, timeout, progress)
    asked = asyncio.run(_ask(endpoint, questions, wanted, options))
    cases = [
        Case(reply.text, question.reference, question.row, logprobs)
        for question, reply, logprobs in zip(questions, asked.replies, asked.logprobs, strict=True)
    ]
    scores, statistics = {}, {}
    per_row: list[dict[str, float]] = [{} for _ in questions]
    for metric in wanted:
        scores[metric.name], statistics[metric.name] = score_rows(metric, cases)
        for row, value in zip(per_row, row_values(metric, statistics[metric.name]), strict=True):
            if value is not None:
                row[metric.name] = value
    answers = [Answer(reply.text, reply.finish_reason, row) for reply, row in zip(asked.replies, per_row, strict=True)]
    return Evaluation(
        endpoint.model, scores, tuple(answers), asked.seconds, asked.tokens_per_second, digest(questions), statistics
    )


def digest(questions: Sequence[Question]) -> str:
    """What identifies ``questions``: SHA-256 over what is sent and wanted."""
    total = hashlib.sha256()
    for question in questions:
        messages = [[message.role, message.content] for message in question.messages or ()]
        total.update(json.dumps([messages, question.prompt, question.reference]).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class _Options:
    max_tokens: int | None
    concurrency: int
    timeout: float
    progress: Progress | None


@dataclass(frozen=True)
class _Asked:
    replies: list[Reply]
    logprobs: list[list[float] | None]
    seconds: float
    tokens_per_second: float


async def _ask(
    endpoint: Endpoint, questions: Sequence[Question], metrics: Sequence[Metric], options: _Options
) -> _Asked:
    answers = any(not metric.from_logprobs for metric in metrics)
    references = any(metric.from_logprobs for metric in metrics)
    concurrency = options.concurrency
    async with Connection(endpoint, options.timeout, concurrency) as connection:
        asker = Asker(connection, endpoint.model)
        limit = options.max_tokens or await asker.enough_tokens([question.reference for question in questions])
        count = _Count(len(questions) * (answers + references), options.progress)
        started = time.monotonic()
        replies = [Reply("", _NOT_ASKED, 0)] * len(questions)
        if answers:
            replies = await _each(questions, lambda question: asker.answer(question, limit), concurrency, count)
        seconds = time.monotonic() - started
        logprobs: list[list[float] | None] = [None] * len(questions)
        if references:
            logprobs = [*await _each(questions, asker.reference_logprobs, concurrency, count)]
    if all(reply.finish_reason == TOO_LONG for reply in replies):
        raise EvaluationError(f"no question fits the context of {endpoint.model}; serve it with more --max-model-len")
    tokens = sum(reply.tokens for reply in replies)
    return _Asked(replies, logprobs, time.monotonic() - started, tokens / seconds if tokens else 0.0)


async def _each(
    questions: Sequence[Question], work: Callable[[Question], Awaitable[T]], concurrency: int, count: _Count
) -> list[T]:
    """``work`` on all ``questions``, in order of the questions; the first error ends it all."""
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> T:
        async with gate:
            result = await work(question)
        count.up()
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(question)) for question in questions]
    except* EvaluationError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class _Count:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def up(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)
