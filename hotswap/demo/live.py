"""The live part of the demo: uploads, questions and a replacement while base traffic runs.

It talks to the server as any client would: the ``openai`` client for questions, ``hotswap publish`` for uploads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hotswap.demo.asking import BASE_PROMPTS, Answer, ChatQuestion, Stream, StreamingClient, traffic
from hotswap.demo.commands import BETTER, FIRST, PREFIX, DemoSettings, publish
from hotswap.demo.findings import Findings, Phase, Scored, latency_in
from hotswap.demo.tasks import CONTACTS, DATES, Task, TaskRow
from trainer.progress import bars
from trainer.serving.local_server import LocalServer

TITLE = "  {task.description:<18}"
AT_ONCE = 4  # questions of one kind
LONG_FACTORS = (2, 3)  # length of the streams that run across the replacement, in uploads
LONG_TOKENS = (48, 1024)  # their least and greatest length


@dataclass
class Live:
    """One server, the packages to upload by name, and the held-out rows by task."""

    settings: DemoSettings
    server: LocalServer
    base: str
    packages: dict[str, Path]
    held_out: dict[str, list[TaskRow]]
    client: StreamingClient
    console: Console
    findings: Findings = field(default_factory=Findings)

    async def run(self) -> Findings:
        """All acts in order."""
        async with traffic(self.client, self.base_stream()):
            self.console.print("  base traffic, no adapter yet")
            with self._phase("before"):
                await asyncio.sleep(self.settings.settle_seconds)
            self.console.print("  uploading contacts (LoRA) and dates (prefix) while it runs")
            with self._phase("upload"):
                await self._publish(FIRST.name, "contacts")
                await self._publish(PREFIX.name, "dates")
            self.console.print("  asking base and both adapters at once")
            with self._phase("mixed"):
                await self._score_all()
            self.console.print("  replacing contacts by its better version while streams run on the old one")
            await self._replace()
            with self._phase("after"):
                await self._score_better()
        return self.findings

    def base_stream(self) -> Stream:
        """The traffic that runs all the time; its length does not depend on what is answered."""
        settings = self.settings
        prompts = BASE_PROMPTS[: settings.lone_rows]
        questions = [ChatQuestion(self.base, prompt, settings.traffic_tokens, ignore_eos=True) for prompt in prompts]
        return Stream(questions, settings.streams, self.findings.answers)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.findings.phases.append(Phase(name, start, time.perf_counter()))

    async def _publish(self, package: str, name: str, *options: str) -> None:
        start = time.perf_counter()
        log = self.settings.out / f"{package}.publish.log"
        await publish(self.server, self.packages[package], name, log, *options)
        self.findings.swap_seconds[f"{package} as {name}"] = round(time.perf_counter() - start, 2)

    async def _score_all(self) -> None:
        with bars(self.console, TITLE) as shown:
            await asyncio.gather(
                self._score("base on contacts", self.base, CONTACTS, shown),
                self._score("base on dates", self.base, DATES, shown),
                self._score("contacts v1", "contacts", CONTACTS, shown),
                self._score("dates", "dates", DATES, shown),
            )

    async def _score_better(self) -> None:
        with bars(self.console, TITLE) as shown:
            await self._score("contacts v2", "contacts", CONTACTS, shown)

    async def _score(self, who: str, model: str, task: Task, shown: Progress) -> None:
        """Ask ``model`` all held-out rows of ``task``, ``AT_ONCE`` at a time."""
        rows = self.held_out[task.name]
        bar = shown.add_task(who, total=len(rows))
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(row: TaskRow) -> Answer:
            async with slots:
                answer = await self.client.ask(ChatQuestion(model, row.prompt, task.max_tokens))
                shown.advance(bar)
                return answer

        answers = await asyncio.gather(*(one(row) for row in rows))
        self.findings.answers += answers
        self.findings.scores[who] = Scored(who, task, rows, answers)

    async def _replace(self) -> None:
        """Publish version 2 of contacts in the middle of streams on version 1, with both adapters' traffic going on."""
        into = self.findings.answers
        contacts, dates = self._questions("contacts", CONTACTS), self._questions("dates", DATES)
        long = [Stream([question], 1, into) for question in self._long_questions(contacts)]
        async with traffic(self.client, Stream(contacts, 1, into), Stream(dates, 1, into), *long):
            with self._phase("replace"):
                await self._publish(BETTER.name, "contacts", "--replace")
                into.append(await self.client.ask(contacts[0]))  # answered by version 2 while others still run on 1

    def _questions(self, model: str, task: Task) -> list[ChatQuestion]:
        """The rows that are asked alone, too."""
        rows = self.held_out[task.name][: self.settings.lone_rows]
        return [ChatQuestion(model, row.prompt, task.max_tokens) for row in rows]

    def _long_questions(self, questions: Sequence[ChatQuestion]) -> list[ChatQuestion]:
        """Questions whose answers, at the pace seen so far, run twice as long as an upload, and longer."""
        pace = latency_in(self.findings.phase("mixed"), self.findings.answers).itl_p50 or 50.0
        upload = self.findings.swap_seconds[f"{FIRST.name} as contacts"] * 1e3 / pace
        least, most = LONG_TOKENS
        tokens = [min(most, max(least, math.ceil(factor * upload))) for factor in LONG_FACTORS]
        return [replace(q, max_tokens=n, ignore_eos=True) for q, n in zip(questions, tokens, strict=False)]
