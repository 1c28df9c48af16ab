"""What the runs of a sweep came to: kept in sweep.json, ranked, and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trainer.errors import CheckpointError
from trainer.files import write_whole

RESULTS_FILE = "sweep.json"
TABLE_FILE = "sweep.md"
HIGHER_IS_BETTER = ("exact_match", "reward_accuracy", "reward_after", "tokens_per_second")


class Outcome(msgspec.Struct, frozen=True):
    """One run. ``settings`` is the hash of its whole configuration; ``error`` is set when it failed."""

    name: str
    values: dict[str, str]
    settings: str
    package: str | None = None
    metrics: dict[str, float] = {}
    error: str | None = None


def read_outcomes(output: Path) -> dict[str, Outcome]:
    """The runs that ``output`` knows, by name; none without the file. Raises CheckpointError when it is broken."""
    path = output / RESULTS_FILE
    if not path.is_file():
        return {}
    try:
        runs = msgspec.convert(json.loads(path.read_text(encoding="utf-8"))["runs"], list[Outcome])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read; remove it to start anew") from error
    return {run.name: run for run in runs}


def write_outcomes(output: Path, outcomes: Sequence[Outcome], metric: str) -> None:
    """Write sweep.json and sweep.md, the best run first, all or nothing."""
    ranked = rank(outcomes, metric)
    best = next((run.name for run in ranked if run.error is None), None)
    record = {"metric": metric, "best": best, "runs": msgspec.to_builtins(ranked)}
    output.mkdir(parents=True, exist_ok=True)  # a run that failed at once leaves none
    write_whole(output / RESULTS_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_whole(output / TABLE_FILE, as_markdown(ranked, metric))


def rank(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """Best first; runs without the metric after them, failed ones last; equals in the order given."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1

    def order(run: Outcome) -> tuple[bool, bool, float]:
        value = run.metrics.get(metric, math.nan)
        return run.error is not None, math.isnan(value), 0.0 if math.isnan(value) else sign * value

    return sorted(outcomes, key=order)


def table(ranked: Sequence[Outcome], metric: str) -> list[list[str]]:
    """Header and rows: rank, the values, the metric and other figures, or the error."""
    keys = list(dict.fromkeys(key for run in ranked for key in run.values))
    known = ("validation_loss", "exact_match", "reward_accuracy", "reward_after", "train_loss", "train_seconds")
    others = [name for name in known if name != metric and any(name in run.metrics for run in ranked)]
    rows = [["", *keys, metric, *others, ""]]
    for at, run in enumerate(ranked, 1):
        figures = [f"{run.metrics[name]:.5g}" if name in run.metrics else "" for name in (metric, *others)]
        rows.append([str(at), *(run.values.get(key, "") for key in keys), *figures, run.error or ""])
    return rows


def as_text(ranked: Sequence[Outcome], metric: str) -> str:
    """The table for a terminal."""
    rows = table(ranked, metric)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(ranked: Sequence[Outcome], metric: str) -> str:
    """The table as Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(ranked, metric)]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
