"""Shows figures as Markdown tables and a plot: medians of the rounds, and of the rounds' ratios."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.speed.loads import LOADS, OWN_LIMITS, OWN_RATIOS, RIVAL_BARS, Figure, RivalBar
from benchmarks.speed.measuring import Measured

OURS = "hotswap"
_NAMES: dict[Figure, str] = {
    "tok_s": "tokens a second",
    "itl_p50_ms": "inter-token p50",
    "ttft_p50_ms": "TTFT p50",
    "pss_mb": "memory",
}


def tables(found: Sequence[Measured], bf16: bool) -> str:
    """The figures of every server and load, our bars, and ours over the rivals'.

    ``bf16``: whether the CPU has units for BF16 or AMX, which some bars depend on.
    """
    parts = [_figures(found), _own_ratios(found)]
    if _rivals(found):
        parts += [_rival_bars(found, bf16), _against_rivals(found)]
    return "\n".join(part for part in parts if part)


def write_section(page: Path, title: str, text: str) -> None:
    """Put ``text`` under the heading ``## title`` of a Markdown page, in place of what stood there, or at its end."""
    whole = page.read_text(encoding="utf-8") if page.is_file() else ""
    section = f"## {title}\n\n{text.strip()}\n"
    standing = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if standing.search(whole):
        whole = standing.sub(lambda _: section + "\n", whole)
    else:
        whole = f"{whole.rstrip()}\n\n{section}".lstrip()
    page.write_text(whole.rstrip() + "\n", encoding="utf-8")


Cell = tuple[str, str]  # a server and a load


def _rivals(found: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(one.server for one in found if one.server != OURS))


def _over(found: Sequence[Measured], ours: Cell, other: Cell, figure: Figure) -> float | None:
    """How many times better ``ours`` is: the median of each round's ratio; None where no round has both."""
    a, b = _by_round(found, ours, figure), _by_round(found, other, figure)
    ratios = [a[number] / b[number] if figure == "tok_s" else b[number] / a[number] for number in a.keys() & b.keys()]
    return median(ratios) if ratios else None


def _by_round(found: Sequence[Measured], cell: Cell, figure: Figure) -> dict[int, float]:
    values = {one.round: float(getattr(one, figure)) for one in found if (one.server, one.load) == cell}
    return {number: value for number, value in values.items() if value}


def _figures(found: Sequence[Measured]) -> str:
    shown = ("tok_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "itl_together_p50_ms", "pss_mb")
    lines = [
        "| load | server | tok/s | TTFT p50 / p95 ms | inter-token p50 / p95 ms | p50, all generate | PSS MB "
        "| failed |",
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
    for limit in OWN_LIMITS:
        if reached := _by_round(found, (OURS, limit.load), limit.figure).values():
            lines.append(f"| {limit.name} | {median(reached):.0f} | {limit.bar:g} at most | {limit.stretch:g} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _rival_bars(found: Sequence[Measured], bf16: bool) -> str:
    lines = ["| ours | against | ratio | bar | stretch |", "|---|---|---|---|---|"]
    for bar in RIVAL_BARS:
        ratios = {rival: _bar_ratio(found, bar, rival) for rival in _rivals(found) if bar.rival in ("", rival)}
        measured = {rival: ratio for rival, ratio in ratios.items() if ratio is not None}
        if measured:
            best = min(measured, key=lambda rival: measured[rival])
            goal = bar.bf16 if bf16 and bar.bf16 else bar.goal
            stretch = "–" if goal.stretch is None else f"{goal.stretch:g}"
            lines.append(
                f"| {bar.load}: {_NAMES[bar.figure]} | {best}, {bar.theirs or 'the same'} | {measured[best]:.2f} "
                f"| {goal.bar:g} | {stretch} |"
            )
    return "\n".join(lines) + "\n"


def _bar_ratio(found: Sequence[Measured], bar: RivalBar, rival: str) -> float | None:
    return _over(found, (OURS, bar.load), (rival, bar.theirs or bar.load), bar.figure)


def _against_rivals(found: Sequence[Measured]) -> str:
    """Ours over each rival's figure for the same load; above 1 is better."""
    names = " | ".join(_NAMES.values())
    lines = [f"| load | hotswap over | {names} |", "|---|---|" + "---|" * len(_NAMES)]
    for load in LOADS:
        for rival in _rivals(found):
            ratios = [_over(found, (OURS, load.name), (rival, load.name), figure) for figure in _NAMES]
            if any(ratios):
                cells = " | ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
                lines.append(f"| {load.name} | {rival} | {cells} |")
    return "\n".join(lines) + "\n"


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
        rates = [median(_by_round(found, (server, load), "tok_s").values() or [0.0]) for load in loads]
        axes.barh([i + place * height for i in range(len(loads))], rates, height, label=server)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(loads))], loads)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
