"""Shows the findings to a person: on the terminal, and the same in report.txt. It judges nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hotswap.demo.findings import Check, Findings, Scored

PHASES = {
    "before": "no adapter",
    "upload": "uploading",
    "mixed": "mixed",
    "replace": "replacing",
    "after": "replaced",
}
SHOWN_ROWS = 3
WIDTH = 118


def write_report(out: Path, findings: Findings, checks: Sequence[Check], console: Console) -> None:
    """Print the report and write report.txt and report.json into ``out``."""
    report = render(findings, checks)
    console.print(report)
    with (out / "report.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=WIDTH).print(report)
    text = json.dumps(findings.as_dict(checks), indent=2, ensure_ascii=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")


def render(findings: Findings, checks: Sequence[Check]) -> RenderableType:
    """The whole report."""
    return Group(
        "", _accuracy(findings), "", *_examples(findings), _latency(findings), "", _swaps(findings), "", _checks(checks)
    )


def _accuracy(findings: Findings) -> Table:
    table = Table(title="Right answers on held-out rows", title_justify="left")
    for heading in ("task", "base", "adapter", "replaced by"):
        table.add_column(heading)
    scores = findings.scores
    table.add_row(
        scores["contacts v1"].task.title,
        _share(scores["base on contacts"]),
        f"{_share(scores['contacts v1'])}  LoRA, version 1",
        f"{_share(scores['contacts v2'])}  LoRA, version 2",
    )
    table.add_row(scores["dates"].task.title, _share(scores["base on dates"]), f"{_share(scores['dates'])}  prefix", "")
    return table


def _share(scored: Scored) -> str:
    return f"{scored.accuracy:4.0%} ({scored.right}/{len(scored.rows)})"


def _examples(findings: Findings) -> list[RenderableType]:
    """Answers side by side, a table for each task."""
    scores = findings.scores
    tables: list[RenderableType] = []
    for heading, shown in (
        ("Contacts", [scores["base on contacts"], scores["contacts v1"], scores["contacts v2"]]),
        ("Dates", [scores["base on dates"], scores["dates"]]),
    ):
        table = Table(title=f"{heading}: answers side by side", title_justify="left", show_lines=True)
        table.add_column("asked", ratio=2)
        for scored in shown:
            table.add_column(scored.who, ratio=2)
        for number, row in enumerate(shown[0].rows[:SHOWN_ROWS]):
            cells = [_answer(scored, number) for scored in shown]
            table.add_row(Text(row.prompt.splitlines()[-1]), *cells)
        tables += [table, ""]
    return tables


def _answer(scored: Scored, number: int) -> Text:
    text = scored.answers[number].text.strip() or "(nothing)"
    right = scored.task.is_right(scored.answers[number].text, scored.rows[number].response)
    shown = text if len(text) <= 110 else text[:109] + "…"
    return Text(f"{'✓' if right else '✗'} {shown}", style="green" if right else "red")


def _latency(findings: Findings) -> Table:
    table = Table(
        title="Latency in ms: time to first token p50 | between tokens p50, p95 (requests)", title_justify="left"
    )
    table.add_column("served by")
    for phase in findings.phases:
        table.add_column(f"{PHASES[phase.name]}\n{phase.end - phase.start:.0f} s", justify="right")
    for version, phases in findings.latencies().items():
        table.add_row(version, *(_cell(phases[phase.name]) for phase in findings.phases))
    return table


def _cell(figures: dict[str, float | int | None]) -> str:
    if figures["ttft_p50"] is None and figures["itl_p50"] is None:
        return "-"
    ttft, gap, tail = (_ms(figures[name]) for name in ("ttft_p50", "itl_p50", "itl_p95"))
    return f"{ttft} | {gap}, {tail} ({figures['requests']})"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _swaps(findings: Findings) -> Text:
    swaps = "; ".join(f"{what} in {seconds:.1f} s" for what, seconds in findings.swap_seconds.items())
    times = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in findings.seconds.items())
    return Text(f"Published through the CLI: {swaps}\nTime taken: {times}")


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(title="Checks", title_justify="left", box=None, show_header=False, pad_edge=False)
    for check in checks:
        mark = Text("✓", style="green") if check.ok else Text("✗", style="bold red")
        table.add_row(mark, Text(check.name), Text(check.detail, style="dim"))
    return table
