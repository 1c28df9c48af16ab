"""Figures of a server as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hotswap.top.figures import QUANTILES, Figures, Row, Whole, ordered

_NOTHING = "-"


def screen(figures: Figures, *, sort: str, most: int, width: int, note: str = "") -> Group:
    """The whole screen, ``width`` characters wide: the server, at most ``most`` rows, and a ``note``."""
    rows = ordered(figures.rows, sort)
    hidden = len(rows) - most
    parts: list[Text | Table] = [*_head(figures.whole), _table(rows[:most], figures.whole.model, width)]
    if hidden > 0:
        parts.append(Text(f"and {hidden} more", style="dim"))
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _head(whole: Whole) -> list[Text]:
    hits = _NOTHING if whole.cache_hits is None else f"{whole.cache_hits:.0%}"
    batch = _NOTHING if whole.batch is None else f"{whole.batch:.1f}"
    first = Text.assemble(
        (whole.model or "?", "bold"),
        f"  hotswap {whole.version}  last {whole.window:.0f} s" if whole.version else "",
        "   running ",
        (str(whole.running), "bold"),
        "   waiting ",
        (str(whole.waiting), "bold yellow" if whole.waiting else "bold"),
        f"   KV {whole.kv_usage:.0%}   prefix hits {hits}   batch {batch}   step p50 / p95 {_pair(whole.steps)}",
    )
    tiers = "   ".join(f"{tier} {count} ({_size(size)})" for tier, (count, size) in whole.tiers.items())
    second = Text(f"adapters: {tiers}   swaps {whole.swaps}", style="dim")
    if whole.preemptions:
        second.append(f"   preemptions {whole.preemptions}", style="yellow")
    if whole.restarts:
        second.append(f"   engine restarts {whole.restarts}", style="red")
    return [first, second]


def _table(rows: Sequence[Row], model: str, width: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ADAPTER", no_wrap=True, max_width=40, overflow="ellipsis")
    table.add_column("VERSION", no_wrap=True)
    columns = [column for column in _COLUMNS if width >= column.width]
    quantiles = len(QUANTILES) if width >= _WIDE else len(QUANTILES) - 1
    for column in columns:
        table.add_column(column.title(quantiles), justify="right", no_wrap=True)
    for row in rows:
        name = _plain(row.adapter) or f"{model} (base)"
        cells = [column.cell(row, quantiles) for column in columns]
        table.add_row(name, _version(row), *cells, style="" if row.busy else "dim")
    if not rows:
        table.add_row("no request yet", style="dim")
    return table


@dataclass(frozen=True)
class _Column:
    """A column of ``field``; on terminals of at least ``width`` characters. Times have limits of yellow and red."""

    name: str
    field: str
    width: int
    limits: tuple[float, float] | None = None

    def title(self, quantiles: int) -> str:
        if self.limits is None:
            return self.name
        return f"{self.name} {' / '.join(f'p{q * 100:g}' for q in QUANTILES[:quantiles])}"

    def cell(self, row: Row, quantiles: int) -> Text:
        value = getattr(row, self.field)
        if self.limits is not None:
            return _times(value[:quantiles], *self.limits)
        return Text(_rate(value), style="red" if self.field == "errors" and value else "")


_WIDE = 150  # characters: room for every quantile
_COLUMNS = (
    _Column("REQ/S", "requests", 0),
    _Column("TOK/S", "tokens", 0),
    _Column("PROMPT/S", "prompt_tokens", 120),
    _Column("ERR/S", "errors", 0),
    _Column("TTFT", "ttft", 0, (2.0, 10.0)),
    _Column("INTER-TOKEN", "itl", 90, (0.2, 1.0)),
    _Column("END TO END", "e2e", 110, (float("inf"), float("inf"))),
)


def _version(row: Row) -> str:
    share = "" if row.share is None else f" {row.role} {row.share:.0%}"
    return f"{_plain(row.version)}{share}"


def _times(values: Sequence[float | None], slow: float, very: float) -> Text:
    text = Text()
    for i, value in enumerate(values):
        style = "" if value is None or value < slow else "yellow" if value < very else "red"
        text.append(" / " if i else "", style="dim")
        text.append(_time(value), style=style)
    return text


def _pair(values: Sequence[float | None]) -> str:
    return " / ".join(map(_time, values[:2]))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _rate(value: float) -> str:
    if not value:
        return _NOTHING
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e6:.0f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.1f} GB"


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
