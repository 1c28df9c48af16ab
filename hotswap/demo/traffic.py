"""Steady traffic in the background: a closed loop of a few streams over a list of prompts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hotswap.demo.asking import Answer, Asker, Question

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

    questions: Sequence[Question]
    count: int
    into: list[Answer]


@asynccontextmanager
async def traffic(asker: Asker, *streams: Stream) -> AsyncIterator[None]:
    """Keep ``streams`` running for the length of the block.

    The last requests are let run to their end, so that every request that was sent has its answer.
    """
    stopping = asyncio.Event()

    async def keep_asking(questions: Iterator[Question], into: list[Answer]) -> None:
        while not stopping.is_set():
            into.append(await asker.ask(next(questions)))

    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            questions = itertools.cycle(stream.questions)
            for _ in range(stream.count):
                tasks.create_task(keep_asking(questions, stream.into))
        try:
            yield
        finally:
            stopping.set()
