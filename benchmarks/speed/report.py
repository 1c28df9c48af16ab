"""Shows figures as Markdown tables and a plot: medians of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.speed.loads import LOADS, OWN_RATIOS, Figure
from benchmarks.speed.measuring import Measured

OURS = "hotswap"


def tables(found: Sequence[Measured]) -> str:
    """The figures of every server and load, our bars, and ours over the rivals'."""
    parts = [_figures(found), _own_ratios(found)]
    if len({one.server for one in found}) > 1:
        parts.append(_against_peers(found))
    return "\n".join(parts)


Cell = tuple[str, str]  # a server and a load


def _value(found: Sequence[Measured], cell: Cell, figure: Figure) -> float | None:
    """The median of the rounds; None where it was not measured."""
    values = [float(getattr(one, figure)) for one in found if (one.server, one.load) == cell]
    return median(values) if values else None


def _figures(found: Sequence[Measured]) -> str:
    shown = ("tok_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "itl_together_p50_ms", "pss_mb")
    lines = [
        "| load | server | tok/s | TTFT p50 / p95 ms | inter-token p50 / p95 ms | p50, all generate | PSS MB | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load in LOADS:
        for server in dict.fromkeys(one.server for one in found if one.load == load.name):
            mine = [one for one in found if (one.server, one.load) == (server, load.name)]
            tok_s, ttft_50, ttft_95, itl_50, itl_95, together, pss = (
                median(getattr(one, name) for one in mine) for name in shown
            )
            failed = sum(one.errors for one in mine)
            lines.append(
                f"| {load.name} | {server} | {tok_s:.1f} | {ttft_50:.0f} / {ttft_95:.0f} | {itl_50:.1f} / {itl_95:.1f} "
                f"| {f'{together:.1f}' if together else '-'} | {pss:.0f} | {failed} |"
            )
    return "\n".join(lines) + "\n"


def _own_ratios(found: Sequence[Measured]) -> str:
    lines = ["| ratio | measured | bar | stretch |", "|---|---|---|---|"]
    for ratio in OWN_RATIOS:
        measured = _over(found, (OURS, ratio.load), (OURS, ratio.against), ratio.figure)
        if measured is not None:
            lines.append(f"| {ratio.name} | {measured:.2f} | {ratio.bar:g} | {ratio.stretch:g} |")
    return "\n".join(lines) + "\n"


def _against_peers(found: Sequence[Measured]) -> str:
    """Ours over each rival's figure for the same load; above 1 is better."""
    lines = ["| load | rival | tokens a second | inter-token p50 | TTFT p50 |", "|---|---|---|---|---|"]
    for load in LOADS:
        for server in dict.fromkeys(one.server for one in found if one.server != OURS):
            figures: tuple[Figure, ...] = ("tok_s", "itl_p50_ms", "ttft_p50_ms")
            ratios = [_over(found, (OURS, load.name), (server, load.name), figure) for figure in figures]
            if ratios[0] is not None:
                cells = " | ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
                lines.append(f"| {load.name} | {server} | {cells} |")
    return "\n".join(lines) + "\n"


def _over(found: Sequence[Measured], ours: Cell, other: Cell, figure: Figure) -> float | None:
    a, b = _value(found, ours, figure), _value(found, other, figure)
    if not a or not b:
        return None
    return a / b if figure == "tok_s" else b / a


def plot(found: Sequence[Measured], path: Path) -> None:
    """Tokens a second of every load, a bar a server."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    loads = [load.name for load in LOADS if any(one.load == load.name for one in found)]
    servers = list(dict.fromkeys(one.server for one in found))
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(loads) + 1.5), layout="constrained")
    height = 0.8 / len(servers)
    for place, server in enumerate(servers):
        rates = [_value(found, (server, load), "tok_s") or 0.0 for load in loads]
        axes.barh([i + place * height for i in range(len(loads))], rates, height, label=server)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(loads))], loads)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
