"""The demo's settings, and the commands of hotswap that it runs to their end as a user would: publish, train.

The progress of training is read from the metrics file it writes. Sizes are chosen so that the demo takes minutes on two
CPU cores.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from hotswap.demo.tasks import CONTACTS, DATES, Task, TaskRow, write_jsonl
from hotswap.errors import DemoError
from trainer.progress import bars
from trainer.serving.local_server import HOTSWAP, LocalServer, environment, last_line


@dataclass(frozen=True)
class TrainingRecipe:
    """One training run: ``method`` as ``hotswap train`` takes it, and how many steps of eight rows."""

    name: str
    task: Task
    method: str
    steps: int


FIRST = TrainingRecipe("contacts-v1", CONTACTS, "lora", steps=6)
BETTER = TrainingRecipe("contacts-v2", CONTACTS, "lora", steps=40)
PREFIX = TrainingRecipe("dates", DATES, "prefix", steps=50)
RECIPES = (FIRST, BETTER, PREFIX)
BATCH_SIZE = 8

# Answers under load are compared with lone ones, token by token. In bf16, which `auto` is where a CPU has it, the shape
# of a batch alone moves log-probabilities by up to 0.5, and a tie would be no evidence.
DTYPE = "float32"


@dataclass(frozen=True)
class DemoSettings:
    """What may differ between two runs of the demo.

    ``base`` and ``quantize`` as for ``hotswap serve``. ``held_out`` rows of each task are scored, ``lone_rows`` of them
    asked again with nothing else running. ``streams`` of base traffic run all the time. ``reuse`` takes the adapters
    that an earlier run left in ``out``. With ``stay`` what was served is kept there, and served again at the end.
    """

    out: Path
    base: str
    quantize: str = "auto"
    seed: int = 0
    held_out: int = 24
    lone_rows: int = 3
    streams: int = 2
    traffic_tokens: int = 24
    settle_seconds: float = 8.0
    reuse: bool = False
    stay: bool = False


async def publish(server: LocalServer, package: Path, name: str, log: Path, *options: str) -> None:
    """``hotswap publish`` of ``package`` as ``name``. Raises DemoError."""
    arguments = ["publish", str(package), "--server", server.url, "--as", name, *options]
    await run_to_end(arguments, log, {"HOTSWAP_ADMIN_KEY": server.admin_key})


async def run_to_end(arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run ``hotswap`` with ``arguments``, its output into ``log``. Raises DemoError with its last line if it fails."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *HOTSWAP, *arguments, stdout=file, stderr=file, env=environment(env or {})
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
    if code != 0:
        raise DemoError(f"hotswap {arguments[0]} failed: {last_line(log)} (its log is {log})")


async def train_all(settings: DemoSettings, rows: Mapping[str, Sequence[TaskRow]], console: Console) -> dict[str, Path]:
    """Train every recipe on the ``rows`` of its task; gives the package of each by name. Raises DemoError."""
    packages: dict[str, Path] = {}
    with bars(console, "  {task.description:<12}", "steps", "{task.fields[loss]}") as progress:
        for recipe in RECIPES:
            task = progress.add_task(recipe.name, total=recipe.steps, loss="")
            packages[recipe.name] = await _train(settings, recipe, rows[recipe.task.name], progress, task)
    return packages


async def _train(
    settings: DemoSettings, recipe: TrainingRecipe, rows: Sequence[TaskRow], progress: Progress, task: TaskID
) -> Path:
    run = settings.out / "runs" / recipe.name
    package = run / "adapter"
    if settings.reuse and (package / "adapter_config.json").is_file():
        progress.update(task, completed=recipe.steps, loss="from an earlier run")
        return package
    data, config = settings.out / f"{recipe.name}.jsonl", settings.out / f"{recipe.name}.yaml"
    write_jsonl(data, rows[: recipe.steps * BATCH_SIZE])
    config.write_text(json.dumps(_config(settings, recipe, data, run), indent=2) + "\n", encoding="utf-8")
    (run / "metrics.jsonl").unlink(missing_ok=True)
    watcher = asyncio.create_task(_watch(run / "metrics.jsonl", progress, task))
    try:
        await run_to_end(["train", str(config), "--overwrite"], settings.out / f"{recipe.name}.train.log")
    finally:
        watcher.cancel()
    _show(run / "metrics.jsonl", progress, task)
    return package


def _config(settings: DemoSettings, recipe: TrainingRecipe, data: Path, run: Path) -> dict[str, Any]:
    """What ``hotswap train`` reads (JSON is YAML): every row once, none held back, the method's own rate.

    The base is quantized as it will be served: a small base changes so much by it that an adapter must know.
    """
    return {
        "output": str(run),
        "base": settings.base,
        "method": recipe.method,
        "data": {"path": str(data), "validation": 0},
        "training": {
            "max_steps": recipe.steps,
            "save_steps": recipe.steps,
            "batch_size": BATCH_SIZE,
            "seed": settings.seed,
            "quantize": settings.quantize,
            "dtype": DTYPE,
        },
    }


async def _watch(metrics: Path, progress: Progress, task: TaskID) -> None:
    while True:
        _show(metrics, progress, task)
        await asyncio.sleep(0.5)


def _show(metrics: Path, progress: Progress, task: TaskID) -> None:
    """Show the last step that was written; a line may be half written."""
    if not metrics.is_file():
        return
    for line in reversed(metrics.read_text(encoding="utf-8").splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "loss" in record:
            progress.update(task, completed=record["step"], loss=f"loss {record['loss']:.3f}")
            return
