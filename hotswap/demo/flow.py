"""The demo from beginning to end: base, data, training, serving, questions asked again alone, report.

What the answers under load are compared with is asked one question at a time with nothing else running. The replaced
version is uploaded once more under a name of its own: a version is its content, so it is the same one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from openai import AsyncOpenAI
from rich.console import Console

from bases.default_base import import_default_base
from bases.finding import DEFAULT_BASE, default_quantization, resolve_base
from hotswap.demo.asking import BASE_PROMPTS, Answer, ChatQuestion, StreamingClient, open_client
from hotswap.demo.checks import OLD, all_checks
from hotswap.demo.commands import BATCH_SIZE, DTYPE, FIRST, RECIPES, DemoSettings, publish, train_all
from hotswap.demo.findings import AnswerKey, Findings, compare_all, key_of
from hotswap.demo.live import Live
from hotswap.demo.report import write_report
from hotswap.demo.tasks import CONTACTS, DATES, TaskRow
from trainer.progress import bars
from trainer.serving.client import AdminClient
from trainer.serving.local_server import LocalServer, start_server, wait_until_ready

OLD_NAME = "contacts-old"
SERVED = "served"  # the folder of what is kept to be served again


async def ask_alone(
    client: StreamingClient, under_load: Sequence[Answer], prompts: set[str], console: Console
) -> dict[AnswerKey, Answer]:
    """The lone answer to every question of ``under_load`` about one of ``prompts``, by the key of that question.

    ``OLD_NAME`` must serve the replaced version. ``client`` should have a salt, so that nothing computed under load is
    used again.
    """
    complete = {key_of(a): a for a in under_load if a.error is None and a.question.prompt in prompts}
    lone = {}
    with bars(console, "  {task.description}") as progress:
        for key, answer in progress.track(complete.items(), description="alone"):
            lone[key] = await client.ask(_again(answer))
    return lone


def _again(answer: Answer) -> ChatQuestion:
    return replace(answer.question, model=OLD_NAME) if answer.version == OLD else answer.question


Rows = dict[str, list[TaskRow]]


@dataclass
class Demo:
    """One run of the demo."""

    settings: DemoSettings
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """How the base is served."""
        settings = self.settings
        options = ["--model", settings.base, "--quantize", settings.quantize, "--dtype", DTYPE]
        return [*options, "--data-dir", str(settings.out / SERVED)] if settings.stay else options

    async def run(self) -> bool:
        """All of it; writes the report into ``settings.out``. Whether every check held.

        Raises HotswapError, and TrainerError for the server.
        """
        self.settings.out.mkdir(parents=True, exist_ok=True)
        if self.settings.base == DEFAULT_BASE:
            with self._act("base", "the base model"):
                import_default_base(lambda text: self.console.print(f"  {text}"))
        if self.settings.quantize == "auto":
            self.settings = replace(self.settings, quantize=default_quantization(resolve_base(self.settings.base)))
        settings = self.settings
        train, held_out = draw_rows(settings)
        with self._act("training", "three adapters, each by hotswap train (logs and data in the output folder)"):
            packages = await train_all(settings, train, self.console)
        if settings.stay:
            shutil.rmtree(settings.out / SERVED, ignore_errors=True)
        with start_server(self.options, settings.out / "server.log") as server:
            with self._act("start", f"hotswap serve --quantize {settings.quantize} --dtype {DTYPE}"):
                await wait_until_ready(server)
            async with open_client(server.url, server.key) as client:
                findings = await self._exercise(server, client, packages, held_out)
            findings.server_exit_code = server.stop()
        findings.seconds = {**self.seconds, "in all": round(sum(self.seconds.values()), 1)}
        checks = all_checks(findings)
        write_report(settings.out, findings, checks, self.console)
        return all(check.ok for check in checks)

    async def _exercise(
        self, server: LocalServer, client: AsyncOpenAI, packages: dict[str, Path], held_out: Rows
    ) -> Findings:
        with AdminClient(server.url, server.admin_key) as admin:
            base = admin.base_name()
        live = Live(self.settings, server, base, packages, held_out, StreamingClient(client), self.console)
        with self._act("live", "hot swaps under traffic"):
            findings = await live.run()
        with self._act("alone", "the same questions again, one at a time, to compare the answers"):
            log = self.settings.out / f"{OLD_NAME}.publish.log"
            await publish(server, packages[FIRST.name], OLD_NAME, log)
            salted = StreamingClient(client, salt="alone")
            prompts = self._compared_prompts(held_out)
            findings.lone = await ask_alone(salted, findings.answers, prompts, self.console)
            findings.verdicts = compare_all(findings.answers, findings.lone)
        return findings

    def _compared_prompts(self, held_out: Rows) -> set[str]:
        rows = self.settings.lone_rows
        return {row.prompt for part in held_out.values() for row in part[:rows]} | set(BASE_PROMPTS)

    @contextmanager
    def _act(self, name: str, title: str) -> Iterator[None]:
        self.console.print(f"[bold]{name}:[/bold] {title}")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def draw_rows(settings: DemoSettings) -> tuple[Rows, Rows]:
    """Training rows and held-out rows by task name."""
    count = max(recipe.steps for recipe in RECIPES) * BATCH_SIZE
    drawn = {task.name: task.rows(count, settings.held_out, seed=settings.seed) for task in (CONTACTS, DATES)}
    return {name: rows[0] for name, rows in drawn.items()}, {name: rows[1] for name, rows in drawn.items()}
