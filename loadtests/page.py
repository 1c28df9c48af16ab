"""Results as one HTML page that needs nothing else: tables and plots, also on a small or dark screen."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loadtests.client import Outcome
from loadtests.plot import overlay, svg

if TYPE_CHECKING:
    from loadtests.compare import Comparison

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f4b; --bad: #c0392b }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 72rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, td:last-child { text-align: left }
.better { color: var(--good) } .worse { color: var(--bad) } .none { opacity: .65 }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; padding: .5rem } figure svg { width: 100%; height: auto }
pre { overflow-x: auto }
"""


def report_page(title: str, text: str, results: Sequence[tuple[str, Sequence[Outcome]]]) -> str:
    """One load test: its table as ``text``, and the plots of each load."""
    parts = [f"<div class=scroll><pre>{html.escape(text)}</pre></div>"]
    parts += [f"<h2>{html.escape(load)}</h2>{_figure(svg([(load, outcomes)]))}" for load, outcomes in results]
    return _page(title, "".join(parts))


def comparison_page(
    before: str,
    after: str,
    then: Mapping[str, Sequence[Outcome]],
    now: Mapping[str, Sequence[Outcome]],
    found: Sequence[Comparison],
) -> str:
    """Two load tests: each load's figures with their intervals, and both distributions in one plot."""
    parts = [
        f"<p>Before: <code>{html.escape(before)}</code>, after: <code>{html.escape(after)}</code>. Ratios are after by "
        "before, with 95 % intervals by the bootstrap; they tell the noise within these runs alone.</p>"
    ]
    for load in dict.fromkeys(one.load for one in found):
        rows = "".join(_row(one) for one in found if one.load == load)
        head = "<tr><th>figure<th>before<th>after<th>ratio<th>95 %<th></tr>"
        sides = {"before": then[load], "after": now[load]}
        parts.append(f"<h2>{html.escape(load)}</h2><div class=scroll><table>{head}{rows}</table></div>")
        parts.append(_figure(overlay(sides)))
    return _page("Two load tests", "".join(parts))


def _row(one: Comparison) -> str:
    kind = {"better": "better", "worse": "worse"}.get(one.verdict, "none")
    unit = f" {one.unit}" if one.unit else ""
    return (
        f"<tr class={kind}><td>{one.figure}<td>{one.before:.1f}{unit}<td>{one.after:.1f}{unit}<td>{one.ratio:.2f}"
        f"<td>{one.low:.2f} to {one.high:.2f}<td>{one.verdict}</tr>"
    )


def _figure(drawing: str) -> str:
    return f"<figure>{drawing}</figure>"


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )
