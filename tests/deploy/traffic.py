"""All that a server can have to tell of, in seconds: swaps, canaries, cold starts, errors, jobs, a lost engine."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from peft import LoraConfig

from server.catalog.jobs import JobEvent
from server.engine.ipc.process_client import ProcessEngineClient
from tests.factory import make_adapter, make_base
from tests.server.live import Live, live_server

BASE = "tiny"
PROMPT = "the quick brown fox jumps over the lazy dog, and "


SECONDS = 60.0
BEFORE = (
    "hotswap:canary_failures:above_live",
    "hotswap:canary_time_to_first_token:by_live",
    "hotswap:canary_time_per_output_token:by_live",
    "hotswap:cold_start_seconds:mean_10m",
    "rate(hotswap_shadow_agreement_ratio_count[20s]) > 0",
    "rate(hotswap_drafted_tokens_total[20s]) > 0",
    'hotswap_fine_tuning_jobs_ended_total{status="failed"} == 1',
    'hotswap_batches_ended_total{status="completed"} == 1',
)
AFTER = (
    "hotswap:faults:rate5m",
    "rate(hotswap_canary_fallbacks_total[20s]) > 0",
    'ALERTS{alertname="HotswapEngineRestarted",alertstate="firing"}',
)


def make_packages(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny base, and five LoRA adapters for it."""
    base = make_base(folder / BASE, max_position_embeddings=512)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    names = ("a1", "a2", "a3", "b", "c")
    return base, {name: make_adapter(base, folder / name, config, seed=i, std=0.3) for i, name in enumerate(names)}


@contextmanager
def watched_server(base: Path, packages: Mapping[str, Path], data_dir: Path) -> Iterator[Live]:
    """A server with an engine process and too little memory for all its adapters."""
    adapters = [(name, str(packages[package])) for name, package in (("a", "a1"), ("b", "b"), ("c", "c"))]
    roots = [str(packages["a1"].parent)]
    with live_server(
        base, data_dir, adapters=adapters, make_engine=ProcessEngineClient, max_resident=4, adapter_root=roots
    ) as live:
        yield live


def cause_everything(live: Live, packages: Mapping[str, Path], is_seen: Callable[[str], bool]) -> None:
    """Have something of each kind happen, for as long as it takes until Prometheus has seen it: ``is_seen`` asks it.

    What begins between two scrapes with a count is no growth to it.
    """
    with live.http() as http:
        _have_jobs(live, http)
        _have_a_batch(http)
        _split(http, packages)
        _ask_until(http, is_seen, BEFORE)
        _be_refused(http, packages)
        _lose_engine(live, http)
        _ask_until(http, is_seen, AFTER)


def _ask_until(http: httpx.Client, is_seen: Callable[[str], bool], exprs: Iterable[str]) -> None:
    for expr in exprs:
        end = time.monotonic() + SECONDS
        while not is_seen(expr):
            assert time.monotonic() < end, f"Prometheus sees nothing of {expr}"
            _ask(http)
            threading.Event().wait(0.25)  # it looks twice a second


def _have_jobs(live: Live, http: httpx.Client) -> None:
    """One that fails, and one that runs, of which its figures are told: jobs get the time that nobody else wants.

    A process of theirs might not begin for minutes on a machine that runs other tests.
    """
    rows = b'{"prompt": "no conversation", "completion": "of any method"}\n' * 2
    file = http.post("/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"}).json()
    body = {"model": BASE, "training_file": file["id"], "method": {"type": "dpo"}}
    http.post("/v1/fine_tuning/jobs", json=body).raise_for_status()
    figures = live.context.fine_tuning.figures
    figures.begin("ftjob-running")
    data = {"step": 2, "total_steps": 8, "train_loss": 0.5, "valid_loss": 0.75}
    figures.told("ftjob-running", [JobEvent(message="", type="metrics", data=data)], 100)


def _have_a_batch(http: httpx.Client) -> None:
    """Of requests that are answered, and one that fails."""
    path = "/v1/completions"
    rows = [
        {
            "custom_id": f"{i}",
            "method": "POST",
            "url": path,
            "body": {"model": model, "prompt": PROMPT, "max_tokens": 4},
        }
        for i, model in enumerate([BASE, "a", "b", "nobody"])
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = http.post("/v1/files", files={"file": ("requests.jsonl", data)}, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": path, "completion_window": "24h"}
    http.post("/v1/batches", json=body).raise_for_status()


def _split(http: httpx.Client, packages: Mapping[str, Path]) -> None:
    """Version 2 of a is a canary, and version 3 its shadow."""
    for package in ("a2", "a3"):
        body = {"name": "a", "source": str(packages[package])}
        http.post("/v1/adapters", params={"activate": "false"}, json=body).raise_for_status()
    shares = {"canary": {"version": 2, "weight": 0.5}, "shadow": {"version": 3, "weight": 1.0}}
    http.patch("/v1/adapters/a", json=shares).raise_for_status()


def _ask(http: httpx.Client) -> None:
    """Requests side by side: to the base, to both versions of a, and to b and c, of which one has room at a time."""

    def one(model: str) -> None:
        body = {"model": model, "prompt": PROMPT * 3, "max_tokens": 24, "ignore_eos": True, "temperature": 0}
        http.post("/v1/completions", json=body).raise_for_status()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, [BASE, *["a"] * 6, "b", "c"]))


def _be_refused(http: httpx.Client, packages: Mapping[str, Path]) -> None:
    """A prompt that is too long, a model that is none, and a package that is none."""
    for body in ({"model": "a", "prompt": "x" * 5000}, {"model": "nobody", "prompt": "x"}):
        assert http.post("/v1/completions", json=body).is_client_error
    source = packages["a1"].parent / BASE
    assert http.post("/v1/adapters", json={"name": "d", "source": str(source)}).is_client_error


def _lose_engine(live: Live, http: httpx.Client) -> None:
    """Amid a stream; the canary's files are broken by then, so that the live version answers for it."""
    canary = live.context.registry.version("a", 2)
    (canary.path / "adapter_model.safetensors").write_bytes(b"")
    long = {"max_tokens": 400, "n": 16, "ignore_eos": True, "speculation": False, "stream": True}
    body = {"model": BASE, "prompt": PROMPT, **long}
    engine = live.context.engine
    assert isinstance(engine, ProcessEngineClient)
    assert engine.pid is not None
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(engine.pid, signal.SIGKILL)
        assert any("engine_unavailable" in line for line in lines)
    live.wait(lambda: engine.restarts == 1 and engine.ready, "the engine to come back")
