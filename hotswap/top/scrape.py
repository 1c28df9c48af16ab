"""What /metrics answered at one moment, and what its counters and histograms grew by until another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Labels = Mapping[str, str]
Key = tuple[str, str]  # adapter, version; the base has neither


@dataclass(frozen=True)
class Histogram:
    """Cumulative counts by upper bound, in the order of the bounds, of which the last is infinite."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def count(self) -> float:
        """How many values there are."""
        return self.counts[-1] if self.counts else 0.0

    def since(self, earlier: Histogram) -> Histogram:
        """What came after ``earlier``; all, where that is of another process."""
        if earlier.bounds != self.bounds or earlier.count > self.count:
            return self
        return Histogram(self.bounds, tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))

    def __add__(self, other: Histogram) -> Histogram:
        if not self.bounds or not other.bounds:
            return self if self.bounds else other
        return Histogram(self.bounds, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def quantile(self, q: float) -> float | None:
        """The value below which the share ``q`` lies; None without values.

        As histogram_quantile of Prometheus: values lie evenly in a bucket, and none above the last finite bound.
        """
        if not self.count:
            return None
        rank = q * self.count
        place = next(i for i, count in enumerate(self.counts) if count >= rank)
        if math.isinf(self.bounds[place]):
            return self.bounds[place - 1] if place else None
        low, before = (self.bounds[place - 1], self.counts[place - 1]) if place else (0.0, 0.0)
        inside = self.counts[place] - before
        return low + (self.bounds[place] - low) * (rank - before) / inside if inside else self.bounds[place]


class Scrape:
    """The samples of one answer. ``at`` is when it came, in seconds of any steady clock."""

    def __init__(self, text: str, at: float) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.at = at
        self._samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            sample: Any
            for sample in family.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these ``labels``."""
        return sum(value for given, value in self._samples.get(name, ()) if labels.items() <= given.items())

    def label(self, name: str, label: str) -> str:
        """What ``label`` says on the first sample of a metric; nothing without one."""
        return next((given.get(label, "") for given, _ in self._samples.get(name, ())), "")

    def by_version(self, name: str) -> dict[Key, float]:
        """The samples of a metric added up by adapter version."""
        found: dict[Key, float] = defaultdict(float)
        for labels, value in self._samples.get(name, ()):
            found[_key(labels)] += value
        return dict(found)

    def by_label(self, name: str, label: str) -> dict[tuple[Key, str], float]:
        """The samples of a metric by adapter version and ``label``."""
        return {(_key(labels), labels.get(label, "")): value for labels, value in self._samples.get(name, ())}

    def histograms(self, name: str) -> dict[Key, Histogram]:
        """Those of a metric, by adapter version; what else tells them apart is added up."""
        buckets: dict[Key, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for labels, value in self._samples.get(f"{name}_bucket", ()):
            buckets[_key(labels)][float(labels["le"])] += value
        return {key: _histogram(counts) for key, counts in buckets.items()}


def _key(labels: Labels) -> Key:
    return labels.get("adapter", ""), labels.get("version", "")


def _histogram(counts: Mapping[float, float]) -> Histogram:
    bounds: Sequence[float] = sorted(counts)
    return Histogram(tuple(bounds), tuple(counts[bound] for bound in bounds))
