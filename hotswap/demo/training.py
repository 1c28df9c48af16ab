"""Trains the demo's adapters with ``hotswap train``, showing its progress from the metrics file it writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hotswap.demo.processes import run_to_end
from hotswap.demo.settings import BATCH_SIZE, RECIPES, Recipe, Settings
from hotswap.demo.tasks import Row, write_jsonl


async def train_all(settings: Settings, rows: Mapping[str, Sequence[Row]], console: Console) -> dict[str, Path]:
    """Train every recipe on the ``rows`` of its task; gives the package of each by name. Raises DemoError."""
    packages: dict[str, Path] = {}
    columns = (TextColumn("  {task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
               TextColumn("{task.fields[loss]}"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for recipe in RECIPES:
            task = progress.add_task(recipe.name, total=recipe.steps, loss="")
            packages[recipe.name] = await _train(settings, recipe, rows[recipe.task.name], progress, task)
    return packages


async def _train(settings: Settings, recipe: Recipe, rows: Sequence[Row], progress: Progress, task: TaskID) -> Path:
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


def _config(settings: Settings, recipe: Recipe, data: Path, run: Path) -> dict[str, Any]:
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
