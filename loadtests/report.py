"""Shows the figures of all runs as a text table and as JSON. It computes none of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HEADINGS = ("load", "model", "ok", "err", "tok/s", "req/s", "ttft p50", "p95", "p99", "itl p50", "p95", "p99",
            "e2e p50", "p95", "p99")  # fmt: skip


def table(runs: Sequence[dict[str, Any]], *, max_models: int = 20) -> str:
    """One row a run and, where a run had several models, one row for each of the busiest; times in ms."""
    rows: list[Sequence[str]] = [HEADINGS]
    for run in runs:
        rows.append(_row(run["load"], "all", run))
        busiest = sorted(run["per_model"].items(), key=lambda item: -item[1]["requests"])
        if len(busiest) > 1:
            rows.extend(_row("", model, part) for model, part in busiest[:max_models])
        if len(busiest) > max_models:
            rows.append(("", f"({len(busiest) - max_models} more in report.json)", *[""] * (len(HEADINGS) - 2)))
    return "\n".join(_aligned(rows))


def _row(load: str, model: str, part: dict[str, Any]) -> tuple[str, ...]:
    figures = [part[name][p] for name in ("ttft_ms", "itl_ms", "e2e_ms") for p in ("p50", "p95", "p99")]
    errors = part["requests"] - part["ok"]
    rates = (f"{part['output_tokens_per_s']:.1f}", f"{part['requests_per_s']:.2f}")
    return (load, model, str(part["ok"]), str(errors), *rates, *map(_ms, figures))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def errors_text(runs: Sequence[dict[str, Any]]) -> str:
    """The errors of all runs by type, with an example of each; empty when there were none."""
    lines = [
        f"{run['load']}: {count} x {kind}: {run['error_examples'].get(kind, '')}"
        for run in runs
        for kind, count in run["errors"].items()
    ]
    return "\n".join(lines)


def write_json(path: Path, settings: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Write settings and figures as one JSON document."""
    path.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2) + "\n", encoding="utf-8")
