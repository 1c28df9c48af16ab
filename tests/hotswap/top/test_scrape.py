"""Scrapes are read as Prometheus reads them."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as Observed

from hotswap.top.scrape import Histogram, Scrape

NAME = "hotswap_time_to_first_token_seconds"


def scrape(registry: CollectorRegistry) -> Scrape:
    return Scrape(generate_latest(registry).decode(), 0.0)


def test_quantiles_lie_evenly_in_their_buckets() -> None:
    histogram = Histogram((0.1, 0.2, 0.4, math.inf), (0, 10, 30, 40))
    assert histogram.quantile(0.125) == pytest.approx(0.15)
    assert histogram.quantile(0.5) == pytest.approx(0.3)
    assert histogram.quantile(0.99) == 0.4  # more is not known
    assert Histogram((1.0, math.inf), (0, 0)).quantile(0.5) is None
    assert Histogram().quantile(0.5) is None


def test_versions_are_told_apart_and_grow() -> None:
    registry = CollectorRegistry()
    observed = Observed(NAME, "x", ("model", "adapter", "version"), buckets=(0.1, 1.0), registry=registry)
    counter = Counter("hotswap_errors_total", "x", ("adapter", "version", "status"), registry=registry)
    observed.labels("m", "sql", "1").observe(0.05)
    counter.labels("sql", "1", "400").inc(2)
    counter.labels("sql", "1", "500").inc(3)
    then = scrape(registry)
    assert then.by_version("hotswap_errors_total") == {("sql", "1"): 5}
    assert then.total("hotswap_errors_total", status="400") == 2
    assert then.label("hotswap_errors_total", "version") == "1"
    observed.labels("m", "sql", "1").observe(0.5)
    observed.labels("m", "", "").observe(0.5)
    now = scrape(registry)
    before, after, base = (
        then.histograms(NAME)["sql", "1"],
        now.histograms(NAME)["sql", "1"],
        now.histograms(NAME)["", ""],
    )
    assert after.since(before).counts == (0, 1, 1)
    assert base.since(Histogram()) is base
    assert before.since(after) is before, "another process counts from nothing"
    assert Histogram() + base is base
    assert (after + base).counts == (1, 3, 3)
