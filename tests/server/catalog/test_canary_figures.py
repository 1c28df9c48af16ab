from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from server.adapter_key import AdapterKey
from server.catalog.canary_figures import MAX_SAMPLES, CanaryFigures
from server.catalog.registry import Registry
from server.catalog.traffic import Canary, Shadow, Traffic, with_canaries
from server.catalog.versions import AdapterVersion, NameRecord, VersionHistory

LIVE, CANARY, OTHER = (AdapterKey("a", number, f"d{number}") for number in (1, 2, 3))


class Clock:
    """A time that moves when told."""

    time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def registry() -> Registry:
    made = Registry("base")
    share_out(made, split())
    return made


def share_out(registry: Registry, traffic: Traffic) -> None:
    """Version 1 is live, and ``traffic`` says of the others."""
    versions = [
        AdapterVersion(key=key, path=Path(str(key)), kind="lora", nbytes=1, num_virtual_tokens=0, created=0.0)
        for key in (LIVE, CANARY, OTHER)
    ]
    registry.adopt("a", VersionHistory(NameRecord(last=3, live=1, candidates={2, 3}, traffic=traffic), versions))


def split(version: int = 2) -> Traffic:
    traffic = with_canaries(Traffic(), [Canary(version=version, parts=(), began=0.0)], [0.5])
    return msgspec.structs.replace(traffic, shadow=Shadow(version=version, weight=1.0, began=0.0))


def test_a_window_is_of_its_last_seconds(registry: Registry) -> None:
    clock = Clock()
    figures = CanaryFigures(registry, clock)
    for ttft in (0.3, 0.1, 0.2):
        figures.served(CANARY, ttft, None)
        clock.time += 10
    figures.failed(CANARY)
    figures.served(LIVE, 0.5, 0.05)
    found = figures.figures("a", 2, 20)
    assert (found.requests, found.errors, found.ttft, found.itl) == (3, 1, (0.1, 0.2), ())
    assert found.error_rate == pytest.approx(1 / 3)
    assert figures.figures("a", 2, 1000).ttft == (0.1, 0.2, 0.3)
    assert figures.figures("a", 1, 20).itl == (0.05,)
    seen = figures.of("a", 2)
    assert (seen.requests, seen.errors) == (4, 1)
    clock.time += 1000
    assert figures.figures("a", 2, 20).error_rate is None


def test_copies(registry: Registry) -> None:
    figures = CanaryFigures(registry, Clock())
    figures.compared(CANARY, ratio=2.0, share=1.0, exact=True)
    figures.compared(CANARY, ratio=1.0, share=0.5, exact=False)
    figures.compared(CANARY, ratio=3.0, share=None, exact=False)
    figures.dropped(CANARY)
    figures.copy_failed(CANARY)
    found = figures.agreement("a", 2, 60)
    assert (found.mean, found.exact_share, found.ratios) == (0.75, 0.5, (1.0, 2.0, 3.0))
    seen = figures.of("a", 2)
    assert (seen.copies, seen.dropped, seen.failed_copies, seen.requests) == (3, 1, 1, 0)


def test_only_versions_that_share_requests_are_kept(registry: Registry) -> None:
    figures = CanaryFigures(registry, Clock())
    figures.served(OTHER, 0.1, None)
    figures.served(None, 0.1, None)
    figures.served(AdapterKey("b", 1, "d"), 0.1, None)
    assert figures.of("a", 3).requests == 0
    assert figures.of("b", 1).requests == 0
    for _ in range(2 * MAX_SAMPLES):
        figures.served(CANARY, 0.1, None)
    assert figures.figures("a", 2, 1000).requests == MAX_SAMPLES
    assert figures.of("a", 2).requests == 2 * MAX_SAMPLES
    share_out(registry, Traffic())
    figures.prune()
    assert not figures._seen


def test_the_next_canary_begins_with_nothing(registry: Registry) -> None:
    figures = CanaryFigures(registry, Clock())
    figures.served(CANARY, 0.1, None)
    figures.served(LIVE, 0.1, None)
    share_out(registry, split())
    assert (figures.of("a", 2).requests, figures.of("a", 1).requests) == (0, 0)
