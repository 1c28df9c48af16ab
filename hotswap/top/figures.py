"""What a server did between two scrapes: rates and quantiles of each adapter version and of the whole, per second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotswap.top.scrape import Histogram, Key, Scrape

QUANTILES = (0.5, 0.95, 0.99)
_TIMES = {
    "ttft": "hotswap_time_to_first_token_seconds",
    "itl": "hotswap_inter_token_latency_seconds",
    "e2e": "hotswap_e2e_request_latency_seconds",
}
_TIERS = ("device", "host", "store")


@dataclass(frozen=True)
class Row:
    """One adapter version, the base (no adapter), or what shares no series of its own ("other").

    ``role`` and ``share``: of a name whose requests are split. Times in seconds at QUANTILES; None: nothing came.
    """

    adapter: str
    version: str
    role: str
    share: float | None
    requests: float  # finished, a second
    errors: float  # a second
    tokens: float  # generated, of finished requests, a second
    prompt_tokens: float
    ttft: tuple[float | None, ...]
    itl: tuple[float | None, ...]
    e2e: tuple[float | None, ...]
    seen: float  # requests since the server's start

    @property
    def busy(self) -> bool:
        """Whether anything came."""
        return bool(self.requests or self.errors or any(value is not None for value in self.ttft + self.itl))


SORTS: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "tokens": lambda row: (-row.tokens, -row.requests, -row.seen),
    "requests": lambda row: (-row.requests, -row.tokens, -row.seen),
    "errors": lambda row: (-row.errors, -row.requests, -row.seen),
    "ttft": lambda row: (-(row.ttft[1] or 0.0), -row.seen),
    "latency": lambda row: (-(row.e2e[1] or 0.0), -row.seen),
    "name": lambda _: (),
}


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """The rows by what ``sort`` names, then by name."""
    return sorted(rows, key=lambda row: (*SORTS[sort](row), row.adapter, row.version))


@dataclass(frozen=True)
class Whole:
    """The server. ``tiers``: adapter versions and their bytes; ``steps``: seconds of a step at QUANTILES."""

    model: str
    version: str
    window: float  # seconds between the scrapes
    running: int
    waiting: int
    kv_usage: float
    cache_hits: float | None  # share of prompt tokens that were found in the prefix cache
    preemptions: int
    restarts: int
    swaps: int
    steps: tuple[float | None, ...]
    batch: float | None  # sequences of a step, mean
    tiers: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Figures:
    """All of it."""

    whole: Whole
    rows: tuple[Row, ...]


def figures(then: Scrape, now: Scrape) -> Figures:
    """What happened from ``then`` to ``now``."""
    window = max(now.at - then.at, 1e-3)
    return Figures(_whole(then, now, window), tuple(_rows(then, now, window)))


def _rows(then: Scrape, now: Scrape, window: float) -> list[Row]:
    counters = {
        field: _grown(then.by_version(name), now.by_version(name))
        for field, name in {
            "requests": "hotswap_requests_total",
            "errors": "hotswap_errors_total",
            "tokens": "hotswap_generation_tokens_total",
            "prompt_tokens": "hotswap_prompt_tokens_total",
        }.items()
    }
    times = {field: _newer(then.histograms(name), now.histograms(name)) for field, name in _TIMES.items()}
    seen, shares = now.by_version("hotswap_requests_total"), now.by_label("hotswap_traffic_share", "role")
    roles = {key: (role, share) for (key, role), share in shares.items()}
    keys = set(roles).union(*counters.values(), *times.values())
    rows = []
    for key in keys:
        role, share = roles.get(key, ("", None))
        rate = {field: grown.get(key, 0.0) / window for field, grown in counters.items()}
        quantiles = {field: _at(found.get(key, Histogram())) for field, found in times.items()}
        row = Row(
            adapter=key[0],
            version=key[1],
            role=role,
            share=share,
            requests=rate["requests"],
            errors=rate["errors"],
            tokens=rate["tokens"],
            prompt_tokens=rate["prompt_tokens"],
            ttft=quantiles["ttft"],
            itl=quantiles["itl"],
            e2e=quantiles["e2e"],
            seen=seen.get(key, 0.0),
        )
        rows.append(row)
    return rows


def _whole(then: Scrape, now: Scrape, window: float) -> Whole:
    def grown(name: str) -> float:
        return _increase(then.total(name), now.total(name))

    queries, steps = grown("hotswap_prefix_cache_queries_total"), grown("hotswap_batch_requests_count")
    step = _newer(then.histograms("hotswap_engine_step_seconds"), now.histograms("hotswap_engine_step_seconds"))
    return Whole(
        model=now.label("hotswap_requests_running", "model"),
        version=now.label("hotswap_build_info", "version"),
        window=window,
        running=int(now.total("hotswap_requests_running")),
        waiting=int(now.total("hotswap_requests_waiting")),
        kv_usage=now.total("hotswap_kv_cache_usage_ratio"),
        cache_hits=grown("hotswap_prefix_cache_hits_total") / queries if queries else None,
        preemptions=int(grown("hotswap_preemptions_total")),
        restarts=int(now.total("hotswap_engine_restarts_total")),
        swaps=int(now.total("hotswap_adapter_swaps_total")),
        steps=_at(sum(step.values(), Histogram())),
        batch=grown("hotswap_batch_requests_sum") / steps if steps else None,
        tiers={
            tier: (
                int(now.total("hotswap_adapters_resident", tier=tier)),
                now.total("hotswap_adapter_bytes", tier=tier),
            )
            for tier in _TIERS
        },
    )


def _grown(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    return {key: _increase(before.get(key, 0.0), value) for key, value in after.items()}


def _increase(before: float, after: float) -> float:
    """What a counter grew by; one that is smaller than it was began anew with its process."""
    return after - before if after >= before else after


def _newer(before: Mapping[Key, Histogram], after: Mapping[Key, Histogram]) -> dict[Key, Histogram]:
    return {key: histogram.since(before.get(key, Histogram())) for key, histogram in after.items()}


def _at(histogram: Histogram) -> tuple[float | None, ...]:
    return tuple(histogram.quantile(q) for q in QUANTILES)
