"""Expressions that several panels share. The base's own requests have no adapter label: graphs call them ``(base)``."""

from __future__ import annotations

WINDOW = "[$__rate_interval]"
HERE = 'model=~"$model",instance=~"$instance"'
SERVER = 'instance=~"$instance"'  # of metrics that say nothing of a model
VERSION = f'{HERE},adapter=~"$adapter",version=~"$version"'
LATENCIES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def rate(metric: str, where: str = HERE, by: str = "") -> str:
    """How fast a counter grows a second, by labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate(hotswap_{metric}{{{where}}}{WINDOW}))"


def quantile(q: float, metric: str, where: str = HERE, by: str = "") -> str:
    """A quantile of a histogram, by labels."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({grouping}) (rate(hotswap_{metric}_bucket{{{where}}}{WINDOW})))"


def mean(metric: str, where: str = HERE, by: str = "") -> str:
    """The mean of a histogram's observations, by labels."""
    return f"{rate(f'{metric}_sum', where, by)} / {rate(f'{metric}_count', where, by)}"


def named(expr: str) -> str:
    """The same series, with the base's called so."""
    return f'label_replace({expr}, "adapter", "(base)", "adapter", "")'


def total(metric: str, where: str = HERE, by: str = "") -> str:
    """The sum of a gauge over the servers, by labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (hotswap_{metric}{{{where}}})"
