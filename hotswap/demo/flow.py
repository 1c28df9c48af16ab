"""The demo from beginning to end: base, data, training, serving, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openai import AsyncOpenAI
from rich.console import Console

from adapters.base import DEFAULT_BASE
from hotswap.base import import_default_base
from hotswap.demo.alone import OLD_NAME, ask_alone
from hotswap.demo.asking import Asker, open_client
from hotswap.demo.checks import all_checks
from hotswap.demo.comparison import compare_all
from hotswap.demo.findings import Findings
from hotswap.demo.live import Live
from hotswap.demo.processes import Server, publish, start_server, wait_until_ready
from hotswap.demo.report import write_report
from hotswap.demo.settings import BATCH_SIZE, FIRST, RECIPES, Settings
from hotswap.demo.tasks import CONTACTS, DATES, Row
from hotswap.demo.traffic import BASE_PROMPTS
from hotswap.demo.training import train_all

Rows = dict[str, list[Row]]


@dataclass
class Demo:
    """One run of the demo."""

    settings: Settings
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    async def run(self) -> bool:
        """All of it; writes the report into ``settings.out``. Whether every check held. Raises HotswapError."""
        settings = self.settings
        settings.out.mkdir(parents=True, exist_ok=True)
        if settings.base == DEFAULT_BASE:
            with self._act("base", "the base model"):
                import_default_base(lambda text: self.console.print(f"  {text}"))
        train, held_out = draw_rows(settings)
        with self._act("training", "three adapters, each by hotswap train (logs and data in the output folder)"):
            packages = await train_all(settings, train, self.console)
        with start_server(settings.base, settings.quantize, settings.out / "server.log") as server:
            with self._act("start", f"hotswap serve --quantize {settings.quantize}"):
                await wait_until_ready(server)
            async with open_client(server.url, server.key) as client:
                findings = await self._exercise(server, client, packages, held_out)
            findings.server_exit_code = server.stop()
        findings.seconds = {**self.seconds, "in all": round(sum(self.seconds.values()), 1)}
        checks = all_checks(findings)
        write_report(settings.out, findings, checks, self.console)
        return all(check.ok for check in checks)

    async def _exercise(
        self, server: Server, client: AsyncOpenAI, packages: dict[str, Path], held_out: Rows
    ) -> Findings:
        base = await base_name(client)
        live = Live(self.settings, server, base, packages, held_out, Asker(client), self.console)
        with self._act("live", "hot swaps under traffic"):
            findings = await live.run()
        with self._act("alone", "the same questions again, one at a time, to compare the answers"):
            log = self.settings.out / f"{OLD_NAME}.publish.log"
            await publish(server, packages[FIRST.name], OLD_NAME, log)
            asker = Asker(client, salt="alone")
            prompts = self._compared_prompts(held_out)
            findings.lone = await ask_alone(asker, findings.answers, prompts, self.console)
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


def draw_rows(settings: Settings) -> tuple[Rows, Rows]:
    """Training rows and held-out rows by task name."""
    count = max(recipe.steps for recipe in RECIPES) * BATCH_SIZE
    drawn = {task.name: task.rows(count, settings.held_out, seed=settings.seed) for task in (CONTACTS, DATES)}
    return {name: rows[0] for name, rows in drawn.items()}, {name: rows[1] for name, rows in drawn.items()}


async def base_name(client: AsyncOpenAI) -> str:
    """What the server calls its base: the model without a parent."""
    return next(m.id for m in (await client.models.list()).data if getattr(m, "parent", None) is None)
