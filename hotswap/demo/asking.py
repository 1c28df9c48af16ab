"""Streamed chat requests through the official ``openai`` client, one at a time or as steady traffic.

An answer has everything the report needs of it. It does not know why it asks, nor what a right answer is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
from openai import AsyncOpenAI

VERSION_HEADER = "x-hotswap-adapter"
TOP_LOGPROBS = 5


@dataclass(frozen=True)
class Token:
    """One token of an answer, its log-probability, and the likeliest tokens there with theirs."""

    text: str
    logprob: float
    top: Mapping[str, float]


@dataclass(frozen=True)
class ChatQuestion:
    """One user message to one model, to be answered greedily."""

    model: str
    prompt: str
    max_tokens: int
    ignore_eos: bool = False


@dataclass
class Answer:
    """What came back. Times are ``time.perf_counter`` seconds; ``stamps`` has one per chunk with text.

    ``version`` is what the server's header says served it, as in ``contacts@2``; empty for the base. ``fingerprints``
    are those of all chunks. ``error`` is None for a complete answer.
    """

    question: ChatQuestion
    start: float
    end: float = 0.0
    version: str = ""
    fingerprints: set[str] = field(default_factory=set)
    text: str = ""
    finish_reason: str | None = None
    tokens: list[Token] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class StreamingClient:
    """Asks one server, greedily. ``salt`` keeps its prompts out of, and away from, everybody else's prefix cache."""

    client: AsyncOpenAI
    salt: str = ""

    async def ask(self, question: ChatQuestion, on_first: Callable[[], object] = lambda: None) -> Answer:
        """The answer to ``question``; never raises for what the server does. ``on_first`` hears of the first text."""
        answer = Answer(question, time.perf_counter())
        extra: dict[str, Any] = {"ignore_eos": True} if question.ignore_eos else {}
        if self.salt:
            extra["cache_salt"] = self.salt
        try:
            raw = await self.client.chat.completions.with_raw_response.create(
                model=question.model,
                messages=[{"role": "user", "content": question.prompt}],
                max_tokens=question.max_tokens,
                temperature=0,
                stream=True,
                logprobs=True,
                top_logprobs=TOP_LOGPROBS,
                extra_body=extra,
            )
            answer.version = raw.headers.get(VERSION_HEADER, "")
            async for chunk in raw.parse():
                _take(answer, chunk)
                if len(answer.stamps) == 1:
                    on_first()
        except openai.OpenAIError as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.end = time.perf_counter()
        if answer.error is None and answer.finish_reason is None:
            answer.error = "the stream ended without a finish_reason"
        return answer


def _take(answer: Answer, chunk: Any) -> None:
    answer.fingerprints.add(chunk.system_fingerprint or "")
    for choice in chunk.choices:
        if choice.delta.content:
            answer.stamps.append(time.perf_counter())
            answer.text += choice.delta.content
        if choice.logprobs and choice.logprobs.content:
            answer.tokens += [
                Token(entry.token, entry.logprob, {top.token: top.logprob for top in entry.top_logprobs})
                for entry in choice.logprobs.content
            ]
        answer.finish_reason = choice.finish_reason or answer.finish_reason


def open_client(url: str, key: str) -> AsyncOpenAI:
    """The official client, without its retries: a failed request must show. Use it as a context manager."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300)


# What a user of the base might ask; none of it is a task of the demo.
BASE_PROMPTS = (
    "Why is the sky blue?",
    "Give me three uses for an old newspaper.",
    "Write a short poem about a harbour in winter.",
    "How do bees find their way home?",
    "What should I pack for a weekend in the mountains?",
    "Explain what a lighthouse is to a child.",
    "Tell me a story about a clock that runs backwards.",
    "How is bread made?",
)


@dataclass(frozen=True)
class Stream:
    """``count`` requests at a time, over ``questions`` again and again; answers go ``into`` a list."""

    questions: Sequence[ChatQuestion]
    count: int
    into: list[Answer]


@asynccontextmanager
async def traffic(client: StreamingClient, *streams: Stream) -> AsyncIterator[None]:
    """Keep ``streams`` running for the length of the block.

    The last requests are let run to their end, so that every request that was sent has its answer.
    """
    stopping = asyncio.Event()

    async def keep_asking(questions: Iterator[ChatQuestion], into: list[Answer]) -> None:
        while not stopping.is_set():
            into.append(await client.ask(next(questions)))

    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            questions = itertools.cycle(stream.questions)
            for _ in range(stream.count):
                tasks.create_task(keep_asking(questions, stream.into))
        try:
            yield
        finally:
            stopping.set()
