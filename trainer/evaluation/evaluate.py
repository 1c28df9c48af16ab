"""Asks a served model all questions and scores its answers.

An answer is greedy; for metrics of the reference, the log-probabilities of the answer wanted are asked for. The server
renders messages by the base's chat template and tokenises, exactly as for any client.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from bases.tool_text import call_text, with_calls
from trainer.data.messages import Question, written_out
from trainer.data.template_messages import MessageForm
from trainer.errors import EvaluationError
from trainer.evaluation.metrics import Case, Metric, find_metrics
from trainer.evaluation.reading import Asking, read_answers
from trainer.evaluation.results import Evaluation, ScoredAnswer
from trainer.evaluation.scoring import row_values, score_rows
from trainer.progress import ProgressCallback
from trainer.serving.client import ContextTooLong, Endpoint, InferenceClient

TOO_LONG = "too_long"  # our own finish_reason, of a question that does not fit the server's context
_LONGEST_TRIED = 8  # references that are tokenised to find the longest
_SLACK = 16
_AS_SENT = MessageForm(text_arguments=True)  # as clients do


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer. ``tokens`` is how many were generated."""

    text: str
    finish_reason: str
    tokens: int


@dataclass(frozen=True)
class ModelClient:
    """Asks ``model`` over ``connection``."""

    connection: InferenceClient
    model: str

    async def answer(self, question: Question, max_tokens: int) -> GreedyAnswer:
        """The greedy answer of at most ``max_tokens``, or of what the context has room for. Raises EvaluationError.

        A prompt that leaves no room at all is answered by nothing, with the finish_reason TOO_LONG.
        """
        while max_tokens:
            try:
                return await self._answer(question, max_tokens)
            except ContextTooLong:
                max_tokens //= 2
        return GreedyAnswer("", TOO_LONG, 0)

    async def _answer(self, question: Question, max_tokens: int) -> GreedyAnswer:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": max_tokens}
        if question.messages is None:
            answer = await self.connection.post("/v1/completions", {**body, "prompt": question.prompt})
        else:
            answer = await self.connection.post("/v1/chat/completions", {**body, **chat_fields(question)})
        try:
            choice = answer["choices"][0]
            text = str(choice["text"] or "") if question.messages is None else _said(choice["message"])
            return GreedyAnswer(text, str(choice["finish_reason"]), int(answer["usage"]["completion_tokens"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self.connection.not_ours(f"no {error} in its answer") from error

    async def reference_logprobs(self, question: Question) -> list[float]:
        """log p of every token of the reference given the prompt; empty where there is none, or no room for it.

        The prompt is tokenised alone, as it is for an answer. Raises EvaluationError.
        """
        if question.messages is not None:
            prompt = await self.tokenize(**chat_fields(question))
        else:
            prompt = await self.tokenize(prompt=question.prompt)
        reference = await self.tokenize(prompt=question.reference, add_special_tokens=False)
        if not reference:
            return []
        body = {"model": self.model, "prompt": prompt + reference, "echo": True, "max_tokens": 0, "logprobs": 0}
        try:
            answer = await self.connection.post("/v1/completions", body)
        except ContextTooLong:
            return []
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"][len(prompt) :]
            return [float(value) for value in values if value is not None]  # nothing predicts a text's first token
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self.connection.not_ours(f"no {error} in its answer") from error

    async def tokenize(self, **what: Any) -> list[int]:
        """Token ids of ``prompt`` or ``messages``. Raises EvaluationError."""
        answer = await self.connection.post("/tokenize", {"model": self.model, **what})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise self.connection.not_ours("no tokens in its answer")
        return tokens

    async def enough_tokens(self, references: Sequence[str]) -> int:
        """A max_tokens that cuts no answer like ``references``: half as many again as the longest has, and a few."""
        longest = sorted(references, key=lambda text: len(text.encode()), reverse=True)[:_LONGEST_TRIED]
        counts = [len(await self.tokenize(prompt=text, add_special_tokens=False)) for text in longest]
        return max(counts) * 3 // 2 + _SLACK


def chat_messages(question: Question) -> list[dict[str, Any]]:
    """The messages of ``question`` as they are sent. Raises EvaluationError for a plain prompt."""
    if question.messages is None:
        raise EvaluationError("a question without messages cannot be sent as a chat")
    try:
        return _AS_SENT.plain(question.messages)
    except ValueError:  # a call that is no JSON was written by nobody's template
        return _AS_SENT.plain(written_out(question.messages, []))


def chat_fields(question: Question) -> dict[str, Any]:
    """What of ``question`` is sent: its messages, and its tools if it has any. Raises EvaluationError as above."""
    tools = {"tools": list(question.tools)} if question.tools else {}
    return {"messages": chat_messages(question), **tools}


def _said(message: Mapping[str, Any]) -> str:
    """An answer as one text, calls as references have them."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return with_calls(message.get("content") or "", [call_text(one["name"], _object(one)) for one in functions])


def _object(function: Mapping[str, Any]) -> Any:
    try:
        return json.loads(function["arguments"])
    except ValueError:  # it was cut
        return function["arguments"]


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
    progress: ProgressCallback | None = None,
    reads: str = "",
) -> Evaluation:
    """Greedy answers of the model at ``endpoint`` to ``questions``, scored by ``metrics`` (names).

    Of a model that ``reads`` (as in EvaluationRows) the answers are classes, numbers, or the places of texts.

    ``max_tokens`` None: half as many again as the longest reference has. ``concurrency`` requests run at a time, each
    for at most ``timeout`` seconds. ``progress`` hears of requests done and requests in all. Raises EvaluationError.
    """
    wanted = find_metrics(metrics)
    if not questions:
        raise EvaluationError("there are no rows to evaluate on")
    options = _Options(max_tokens, concurrency, timeout, progress)
    asked = asyncio.run(
        _read(endpoint, questions, reads, options) if reads else _ask(endpoint, questions, wanted, options)
    )
    return _evaluation(endpoint.model, questions, wanted, asked)


def always(questions: Sequence[Question], metrics: Sequence[str], reads: str) -> Evaluation:
    """What the same answer to all ``questions`` (or words) scores: their commonest class or tag, or the mean.

    Raises EvaluationError.
    """
    wanted = [question.reference for question in questions]
    if questions[0].words:
        answer = Counter(tag for tags in wanted for tag in json.loads(tags)).most_common(1)[0][0]
        replies = [GreedyAnswer(json.dumps([answer] * len(json.loads(tags))), "stop", 0) for tags in wanted]
    else:
        answer = repr(fmean(map(float, wanted))) if reads == "regression" else Counter(wanted).most_common(1)[0][0]
        replies = [GreedyAnswer(answer, "stop", 0)] * len(questions)
    asked = _Asked(replies, [None] * len(questions), 0.0, 0.0)
    name = "the mean" if reads == "regression" else f"always {answer}"
    return _evaluation(name, questions, find_metrics(metrics), asked)


def _evaluation(model: str, questions: Sequence[Question], wanted: Sequence[Metric], asked: _Asked) -> Evaluation:
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
    answers = [
        ScoredAnswer(reply.text, reply.finish_reason, row) for reply, row in zip(asked.replies, per_row, strict=True)
    ]
    return Evaluation(
        model, scores, tuple(answers), asked.seconds, asked.tokens_per_second, digest(questions), statistics
    )


def digest(questions: Sequence[Question]) -> str:
    """What identifies ``questions``: SHA-256 over what is sent and wanted."""
    total = hashlib.sha256()
    for question in questions:
        messages = [list(message.values()) for message in (chat_messages(question) if question.messages else ())]
        total.update(json.dumps([messages, question.prompt, question.reference, *question.others]).encode())
        total.update(json.dumps(question.tools).encode() if question.tools else b"")
    return total.hexdigest()


@dataclass(frozen=True)
class _Options:
    max_tokens: int | None
    concurrency: int
    timeout: float
    progress: ProgressCallback | None


@dataclass(frozen=True)
class _Asked:
    replies: list[GreedyAnswer]
    logprobs: list[list[float] | None]
    seconds: float
    tokens_per_second: float


async def _ask(
    endpoint: Endpoint, questions: Sequence[Question], metrics: Sequence[Metric], options: _Options
) -> _Asked:
    answers = any(not metric.from_logprobs for metric in metrics)
    references = any(metric.from_logprobs for metric in metrics)
    concurrency = options.concurrency
    async with InferenceClient(
        endpoint.server, endpoint.api_key, timeout=options.timeout, connections=concurrency
    ) as connection:
        model = ModelClient(connection, endpoint.model)
        limit = options.max_tokens or await model.enough_tokens([question.reference for question in questions])
        count = _Count(len(questions) * (answers + references), options.progress)
        started = time.monotonic()
        replies = [GreedyAnswer("", _NOT_ASKED, 0)] * len(questions)
        if answers:
            replies = await _each(questions, lambda question: model.answer(question, limit), concurrency, count)
        seconds = time.monotonic() - started
        logprobs: list[list[float] | None] = [None] * len(questions)
        if references:
            logprobs = [*await _each(questions, model.reference_logprobs, concurrency, count)]
    if all(reply.finish_reason == TOO_LONG for reply in replies):
        raise EvaluationError(f"no question fits the context of {endpoint.model}; serve it with more --max-model-len")
    tokens = sum(reply.tokens for reply in replies)
    return _Asked(replies, logprobs, time.monotonic() - started, tokens / seconds if tokens else 0.0)


async def _read(endpoint: Endpoint, questions: Sequence[Question], reads: str, options: _Options) -> _Asked:
    async with InferenceClient(
        endpoint.server, endpoint.api_key, timeout=options.timeout, connections=options.concurrency
    ) as connection:
        count = _Count(len(questions), options.progress)
        started = time.monotonic()
        work = Asking(connection, endpoint.model, options.concurrency, count.up)
        answers = await read_answers(work, questions, reads)
        seconds = time.monotonic() - started
    return _Asked([GreedyAnswer(text, "stop", 0) for text in answers], [None] * len(questions), seconds, 0.0)


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
    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def up(self, more: int = 1) -> None:
        self._done += more
        if self._progress:
            self._progress(self._done, self._total)
