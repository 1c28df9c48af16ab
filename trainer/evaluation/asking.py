"""One question to a serving engine: its greedy answer, or the log-probabilities of the answer wanted.

The server renders messages by the base's chat template and tokenises, exactly as for any client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.questions import Question
from trainer.errors import EvaluationError
from trainer.evaluation.http import Connection, TooLong, not_like_hotswap

TOO_LONG = "too_long"  # our own finish_reason, of a question that does not fit the server's context
_LONGEST_TRIED = 8  # references that are tokenised to find the longest
_SLACK = 16


@dataclass(frozen=True)
class Reply:
    """A greedy answer. ``tokens`` is how many were generated."""

    text: str
    finish_reason: str
    tokens: int


@dataclass(frozen=True)
class Asker:
    """Asks ``model`` over ``connection``."""

    connection: Connection
    model: str

    async def answer(self, question: Question, max_tokens: int) -> Reply:
        """The greedy answer of at most ``max_tokens``, or of what the context has room for. Raises EvaluationError.

        A prompt that leaves no room at all is answered by nothing, with the finish_reason TOO_LONG.
        """
        while max_tokens:
            try:
                return await self._answer(question, max_tokens)
            except TooLong:
                max_tokens //= 2
        return Reply("", TOO_LONG, 0)

    async def _answer(self, question: Question, max_tokens: int) -> Reply:
        body: dict[str, Any] = {"model": self.model, "temperature": 0, "max_tokens": max_tokens}
        if question.messages is None:
            answer = await self.connection.post("/v1/completions", {**body, "prompt": question.prompt})
        else:
            answer = await self.connection.post("/v1/chat/completions", {**body, "messages": _messages(question)})
        try:
            choice = answer["choices"][0]
            text = choice["text"] if question.messages is None else choice["message"]["content"]
            return Reply(str(text or ""), str(choice["finish_reason"]), int(answer["usage"]["completion_tokens"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise not_like_hotswap(self.model, f"no {error} in its answer") from error

    async def reference_logprobs(self, question: Question) -> list[float]:
        """log p of every token of the reference given the prompt; empty where there is none, or no room for it.

        The prompt is tokenised alone, as it is for an answer. Raises EvaluationError.
        """
        if question.messages is not None:
            prompt = await self.tokenize(messages=_messages(question))
        else:
            prompt = await self.tokenize(prompt=question.prompt)
        reference = await self.tokenize(prompt=question.reference, add_special_tokens=False)
        if not reference:
            return []
        body = {"model": self.model, "prompt": prompt + reference, "echo": True, "max_tokens": 0, "logprobs": 0}
        try:
            answer = await self.connection.post("/v1/completions", body)
        except TooLong:
            return []
        try:
            values = answer["choices"][0]["logprobs"]["token_logprobs"][len(prompt) :]
            return [float(value) for value in values if value is not None]  # nothing predicts a text's first token
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise not_like_hotswap(self.model, f"no {error} in its answer") from error

    async def tokenize(self, **what: Any) -> list[int]:
        """Token ids of ``prompt`` or ``messages``. Raises EvaluationError."""
        answer = await self.connection.post("/tokenize", {"model": self.model, **what})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise not_like_hotswap(self.model, "no tokens in its answer")
        return tokens

    async def enough_tokens(self, references: Sequence[str]) -> int:
        """A max_tokens that cuts no answer like ``references``: half as many again as the longest has, and a few."""
        longest = sorted(references, key=lambda text: len(text.encode()), reverse=True)[:_LONGEST_TRIED]
        counts = [len(await self.tokenize(prompt=text, add_special_tokens=False)) for text in longest]
        return max(counts) * 3 // 2 + _SLACK


def _messages(question: Question) -> list[dict[str, str]]:
    if question.messages is None:
        raise EvaluationError("a question without messages cannot be sent as a chat")
    return [{"role": message.role, "content": message.content} for message in question.messages]
