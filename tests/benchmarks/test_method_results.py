from __future__ import annotations

from typing import Any

from benchmarks.method_results import table


def _row(name: str, method: str, value: float, **trained: float) -> dict[str, Any]:
    score = {"value": value, "low": value - 0.05, "high": value + 0.05}
    return {
        "set": name,
        "method": method,
        "trained": trained,
        "scored": {"candidate": {"scores": {"exact_match": score}, "tokens_per_second": 123.4}},
    }


def test_a_line_for_each_run_with_sets_together() -> None:
    rows = [
        _row("snips", "base", 0.1),
        _row("banking77", "lora", 0.7, trainable_parameters=2_442_240),
        _row("snips", "lora", 0.5, trainable_parameters=2_442_240, cpu_seconds=61.4, peak_memory_mb=2400.2),
    ]
    _, _, *lines = table(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cell[:2] for cell in cells] == [["snips", "base"], ["snips", "lora"], ["banking77", "lora"]]
    assert cells[0][2:] == ["exact_match 0.100 (0.050 to 0.150)", "", "", "", "123"]
    assert cells[1][3:] == ["2,442,240", "61", "2,400", "123"]
