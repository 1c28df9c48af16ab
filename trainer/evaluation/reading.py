"""Asks a served model that reads: /v1/classify for classes, tags and numbers, /v1/embeddings for
vectors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.serving.client import ContextTooLong, InferenceClient

_AT_ONCE = 16  # texts of one request
_HALF = 0.5


async def read_answers(work: Asking, questions: Sequence[Question], reads: str) -> list[str]:
    """What a model says of each question, as ``trainer.pooling.answers`` writes it. Raises EvaluationError."""
    if reads in ("embedding", "similarity"):
        return await _compared(work, questions, places=reads == "embedding")
    if questions[0].words:
        return await work.each(questions, lambda part: _tags(work, part))
    names = questions[0].names  # of all classes, where a text has any number of them
    read = _number if reads == "regression" else partial(_several, names) if names else _one
    return await work.each(questions, lambda part: _classes(work, part, read))


class Asking:
    """Asks ``model`` over ``connection``, ``concurrency`` requests at a time; ``done`` counts the texts."""

    def __init__(self, connection: InferenceClient, model: str, concurrency: int, done: Callable[[int], None]) -> None:
        self.connection, self.model = connection, model
        self._gate, self._done = asyncio.Semaphore(concurrency), done

    async def each(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Awaitable[list[Any]]]) -> list[Any]:
        """``work`` on runs of ``items``, joined in their order; the first error ends it all."""

        async def one(part: Sequence[Any]) -> list[Any]:
            async with self._gate:
                found = await work(part)
            self._done(len(part))
            return found

        parts = [items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(part)) for part in parts]
        except* EvaluationError as errors:
            raise errors.exceptions[0] from None
        return [found for task in tasks for found in task.result()]

    async def data(self, path: str, **what: Any) -> list[dict[str, Any]]:
        """The ``data`` of the answer to ``what``. Raises EvaluationError."""
        try:
            answer = await self.connection.post(path, {"model": self.model, **what})
        except ContextTooLong as error:
            raise EvaluationError(f"a text does not fit the context of {self.model}: {error}") from error
        data = answer.get("data")
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise self.connection.not_ours("no data in its answer")
        return data


async def _classes(work: Asking, part: Sequence[Question], read: Callable[[dict[str, Any]], str]) -> list[str]:
    found: list[dict[str, Any]] = []
    if all(question.prompt is not None for question in part):
        pairs = [question.others[0] for question in part if question.others]
        texts = [question.prompt for question in part]
        found = await work.data("/v1/classify", input=texts, **({"text_pair": pairs} if pairs else {}))
    else:
        for question in part:
            messages = [{"role": one.role, "content": one.content} for one in question.messages or ()]
            found += await work.data("/v1/classify", messages=messages)
    _check_kind(work, found, of_words=False)
    try:
        return [read(one) for one in found]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise work.connection.not_ours(f"no {error} in its answer") from error


async def _tags(work: Asking, part: Sequence[Question]) -> list[str]:
    """The tags of the words of each question, by the tokens that they begin in."""
    from trainer.pooling.answers import tags_at
    from trainer.pooling.examples import first_tokens

    found = await work.data("/v1/classify", input=[question.prompt for question in part])
    _check_kind(work, found, of_words=True)
    said = []
    try:
        for question, one in zip(part, found, strict=True):
            tokens = one["tokens"]
            places = first_tokens(question.words, [(token["start"], token["end"]) for token in tokens])
            tags = tags_at([*places], [str(token["label"]) for token in tokens])
            said.append(json.dumps(tags, ensure_ascii=False))
    except (KeyError, TypeError, ValueError) as error:
        raise work.connection.not_ours(f"no {error} in its answer") from error
    return said


def _check_kind(work: Asking, found: Sequence[dict[str, Any]], *, of_words: bool) -> None:
    """Raise EvaluationError where the model tells of tokens and the rows want texts, or the other way round."""
    tells_tokens = any("tokens" in one for one in found)
    if tells_tokens != of_words:
        has, task = ("every token", "token-classification") if tells_tokens else ("whole texts", "classification")
        raise EvaluationError(f"{work.model} tells of {has}, and the rows are of another task; set task={task}")


def _one(found: dict[str, Any]) -> str:
    return str(found["label"])


def _several(names: Sequence[str], found: dict[str, Any]) -> str:
    shares = found["probs"]
    if len(shares) != len(names):
        raise EvaluationError(
            f"the model has {len(shares)} classes and the rows {len(names)}; name them as in training: task.labels"
        )
    said = [name for name, share in zip(names, shares, strict=True) if share > _HALF]
    return json.dumps(sorted(said), ensure_ascii=False)


def _number(found: dict[str, Any]) -> str:
    return repr(float(found["probs"][0]))


async def _compared(work: Asking, questions: Sequence[Question], *, places: bool) -> list[str]:
    """The places of the texts that belong together, or the cosines of pairs."""
    import torch

    from trainer.pooling.answers import ranks

    texts = list(dict.fromkeys(t for question in questions for t in (question.prompt or "", *question.others)))

    async def vectors(part: Sequence[str]) -> list[list[float]]:
        data = await work.data("/v1/embeddings", input=list(part), normalize=True)
        return [one["embedding"] for one in data]

    found = torch.tensor(await work.each(texts, vectors))
    place = {text: i for i, text in enumerate(texts)}
    firsts = found[[place[question.prompt or ""] for question in questions]]
    seconds = found[[place[question.others[0]] for question in questions]]
    if not places:
        return [repr(cosine) for cosine in (firsts * seconds).sum(-1).tolist()]
    others = list(dict.fromkeys(place[text] for question in questions for text in question.others))
    return list(map(str, ranks(firsts, seconds, found[others])))
