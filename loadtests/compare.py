"""Two load tests beside each other: how much faster the second is, and how sure that is.

    python -m loadtests.compare before-out after-out --html compare.html

Ratios are the second's figure by the first's, with a 95 % interval by the percentile bootstrap (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13): latencies by drawing requests anew, rates by drawing slices of the
run's time. It tells the noise within these two runs, not between days or machines: take turns, and repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.client import Outcome
from loadtests.samples import loads_of, read_samples
from loadtests.stats import LATENCIES, output_tokens

RESAMPLES = 1000
SLICES = 20  # of a run's time
LEAST = 5  # requests of a run that say anything
Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator], float]


@dataclass(frozen=True)
class Comparison:
    """One figure of one load. ``ratio``: after by before, ``low`` to ``high`` with 95 %; of rates more is better."""

    load: str
    figure: str
    unit: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    more_is_better: bool

    @property
    def verdict(self) -> str:
        """What that shows."""
        if self.low <= 1 <= self.high:
            return "no difference shown"
        return "better" if (self.ratio > 1) == self.more_is_better else "worse"


@dataclass(frozen=True)
class _Figure:
    """What is compared, of one side: its ``value``, and how it comes out of one more drawing."""

    value: float
    draw: Draw


def compare(before: dict[str, list[Outcome]], after: dict[str, list[Outcome]], seed: int = 0) -> list[Comparison]:
    """All figures of all loads that both have."""
    found = []
    for load in loads_of((before, after)):
        sides = [[one for one in side[load] if one.error is None and one.stamps] for side in (before, after)]
        if min(map(len, sides)) < LEAST:
            continue
        found.append(_compared(load, "tokens a second", list(map(_rate, sides)), seed))
        for latency, name in _NAMES.items():
            groups = [
                [array for one in side if (array := np.array(LATENCIES[latency](one)) * 1e3).size] for side in sides
            ]
            if all(groups):
                found += [
                    _compared(load, f"{name} p{q}", [_quantile(g, q) for g in groups], seed) for q in (50, 95, 99)
                ]
    return found


_NAMES = {"ttft": "first token", "itl": "between tokens", "e2e": "end to end"}


def _compared(load: str, name: str, sides: Sequence[_Figure], seed: int) -> Comparison:
    before, after = sides
    rng = np.random.default_rng(seed)
    drawn = [(before.draw(rng), after.draw(rng)) for _ in range(RESAMPLES)]
    ratios = [b / a for a, b in drawn if a > 0]
    low, high = np.percentile(ratios, (2.5, 97.5)) if ratios else (0.0, float("inf"))
    ratio = after.value / before.value if before.value else float("nan")
    is_rate = name == "tokens a second"
    return Comparison(
        load, name, "" if is_rate else "ms", before.value, after.value, ratio, float(low), float(high), is_rate
    )


def _rate(outcomes: Sequence[Outcome]) -> _Figure:
    """Output tokens a second: those of each slice of time, as they came."""
    begin, end = min(o.start for o in outcomes), max(o.end for o in outcomes)
    stamps = np.concatenate([np.array(o.stamps) for o in outcomes])
    weights = np.concatenate([np.full(len(o.stamps), output_tokens(o) / len(o.stamps)) for o in outcomes])
    slices, _ = np.histogram(stamps, bins=SLICES, range=(begin, end), weights=weights)
    rates = slices / ((end - begin) / SLICES)
    return _Figure(float(rates.mean()), lambda rng: float(rng.choice(rates, SLICES).mean()))


def _quantile(groups: Sequence[Values], q: float) -> _Figure:
    """The quantile of all values; requests are drawn with all of theirs, which are not independent."""

    def draw(rng: np.random.Generator) -> float:
        chosen = rng.integers(len(groups), size=len(groups))
        return float(np.percentile(np.concatenate([groups[i] for i in chosen]), q))

    return _Figure(float(np.percentile(np.concatenate(groups), q)), draw)


def table(found: Sequence[Comparison]) -> str:
    """For a person."""
    lines = [f"{'load':<24} {'figure':<20} {'before':>10} {'after':>10}  {'ratio':>6} {'95 %':>15}"]
    for one in found:
        interval = f"{one.low:.2f} to {one.high:.2f}"
        lines.append(
            f"{one.load:<24} {one.figure:<20} {one.before:>10.1f} {one.after:>10.1f}  {one.ratio:>6.2f} {interval:>15}"
            f"  {one.verdict}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two load tests; 0, or 1 where they cannot be, or with --fail-if-worse when a figure is worse."""
    args = _parse(argv)
    try:
        before, after = read_samples(args.before), read_samples(args.after)
    except (OSError, ValueError) as error:
        print(f"loadtests.compare: {error}", file=sys.stderr)
        return 1
    found = compare(before, after, args.seed)
    if not found:
        print(f"loadtests.compare: no load was run by both with {LEAST} answers or more", file=sys.stderr)
        return 1
    print(table(found))
    if args.json is not None:
        rows = [{**asdict(one), "verdict": one.verdict} for one in found]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if args.html is not None:
        from loadtests.page import comparison_page

        args.html.write_text(comparison_page(str(args.before), str(args.after), before, after, found), encoding="utf-8")
    return 1 if args.fail_if_worse and any(one.verdict == "worse" for one in found) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtests.compare", description="Two load tests beside each other.")
    parser.add_argument("before", type=Path, help="the --out of one load test")
    parser.add_argument("after", type=Path, help="that of another with the same loads")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the plots of both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--fail-if-worse", action="store_true", help="exit with 1 when a figure is surely worse")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
