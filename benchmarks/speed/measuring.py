"""Runs loads against servers, one server at a time and all of them in turn, so that a slow minute meets each alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.load_client import run_load
from benchmarks.speed.loads import Load
from benchmarks.speed.servers import Endpoint, Server, Work

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One run of a load. Milliseconds, tokens a second, megabytes; ``errors`` counts requests.

    ``itl_together_p50_ms`` is of the steps in which all streams generate and no prompt is computed; 0 where a load has
    none, because its requests take turns.
    """

    server: str
    load: str
    round: int
    tok_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_together_p50_ms: float
    pss_mb: float
    errors: int


def measure(
    servers: Sequence[Server], loads: Sequence[Load], work: Work, rounds: int, progress: Progress
) -> list[Measured]:
    """All loads, ``rounds`` times."""
    found: list[Measured] = []
    sets = list(dict.fromkeys(load.adapters for load in loads))
    for number in range(rounds):
        for adapters in sets:
            for server in servers:
                if adapters in server.sets:
                    mine = [load for load in loads if load.adapters == adapters]
                    found += _measure_server(server.name, server.start(work, adapters), mine, number, progress)
    return found


def _measure_server(
    name: str, started: AbstractContextManager[Endpoint], loads: Sequence[Load], number: int, progress: Progress
) -> Iterator[Measured]:
    with started as endpoint:
        warm: set[str] = set()
        for load in loads:
            models = {"base": (endpoint.base,), "one": endpoint.adapters[:1], "all": endpoint.adapters}[load.asked]
            with _neighbour(load.neighbour):
                report = _ask(endpoint, load, models, warmup=0 if warm.issuperset(models) else len(models), seed=number)
            warm.update(models)
            measured = _measured(name, load, number, report, endpoint.pss_mb())
            failed = f", {measured.errors} failed: {report['error_examples']}" if measured.errors else ""
            progress(f"{name}: {load.name}: {measured.tok_s:.1f} tok/s{failed}")
            yield measured


def _ask(endpoint: Endpoint, load: Load, models: Sequence[str], warmup: int, seed: int) -> dict[str, Any]:
    options = ["--concurrency", str(load.concurrency), "--requests", str(load.requests)]
    options += ["--prompt-tokens", str(load.prompt_tokens), "--max-tokens", str(load.max_tokens)]
    options += ["--warmup", str(warmup), "--fields", json.dumps(endpoint.fields), "--seed", str(seed)]
    if load.seconds:
        options += ["--duration", str(load.seconds)]
    return run_load(endpoint.url, models, endpoint.key, options)


def _measured(server: str, load: Load, number: int, run: dict[str, Any], pss_mb: float) -> Measured:
    return Measured(
        server=server,
        load=load.name,
        round=number,
        tok_s=run["output_tokens_per_s"],
        ttft_p50_ms=run["ttft_ms"]["p50"] or 0.0,
        ttft_p95_ms=run["ttft_ms"]["p95"] or 0.0,
        itl_p50_ms=run["itl_ms"]["p50"] or 0.0,
        itl_p95_ms=run["itl_ms"]["p95"] or 0.0,
        itl_together_p50_ms=run["itl_together_ms"]["p50"] or 0.0,
        pss_mb=pss_mb,
        errors=run["requests"] - run["ok"],
    )


@contextmanager
def _neighbour(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()
