"""The table of ``loadtests.method_results``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TRAINED = {
    "trainable_parameters": "trainable",
    "cpu_seconds": "training, CPU s",
    "peak_memory_mb": "peak MB",
}
_HEAD = ("set", "method", "scores (95 % interval)", *_TRAINED.values(), "served tokens/s")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each run; sets in the order in which they come."""
    order = {name: at for at, name in enumerate(dict.fromkeys(row["set"] for row in rows))}
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for row in sorted(rows, key=lambda row: order[row["set"]]):
        lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    trained, candidate = row["trained"], row["scored"]["candidate"]
    scores = "; ".join(
        f"{name} {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
        for name, score in candidate["scores"].items()
    )
    return [
        row["set"],
        row["method"],
        scores,
        *(f"{trained[key]:,.0f}" if key in trained else "" for key in _TRAINED),
        f"{candidate['tokens_per_second']:,.0f}",
    ]
