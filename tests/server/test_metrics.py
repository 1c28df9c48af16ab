from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.adapter_key import AdapterKey
from server.catalog.observer import Action
from server.catalog.versions import VersionState
from server.engine.messages import AdapterLoaded, EngineInfo, EngineStats, StepOutputs
from server.metrics import FINISH_REASONS, REQUEST_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS, Metrics, RequestClock

KEY = AdapterKey("a", 3, "d")
LABELS = {"model": "base", "adapter": "a", "version": "3"}


class Clock:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_one_sequence() -> None:
    metrics, now = Metrics("base"), Clock()
    clock = RequestClock([metrics._series(metrics._labels.count(KEY))], 100.0, now)
    for seconds, count in ((0.5, 1), (0.2, 1), (0.6, 3), (0.1, 0)):
        now.time += seconds
        clock.tokens(count, queued_seconds=0.25)
        clock.drafts(2 * count, count)
    clock.finish("stop", 7)
    assert value(metrics, "hotswap_time_to_first_token_seconds_sum", **LABELS) == pytest.approx(0.5)
    assert value(metrics, "hotswap_request_queue_time_seconds_sum", **LABELS) == pytest.approx(0.25)
    assert value(metrics, "hotswap_inter_token_latency_seconds_sum", **LABELS) == pytest.approx(0.2 + 0.2)
    assert value(metrics, "hotswap_request_time_per_output_token_seconds_sum", **LABELS) == pytest.approx(0.8 / 4)
    assert value(metrics, "hotswap_e2e_request_latency_seconds_sum", **LABELS) == pytest.approx(1.4)
    assert value(metrics, "hotswap_prompt_tokens_total", **LABELS) == 7
    assert value(metrics, "hotswap_generation_tokens_total", **LABELS) == 5
    assert value(metrics, "hotswap_drafted_tokens_total", **LABELS) == 10
    assert value(metrics, "hotswap_accepted_tokens_total", **LABELS) == 5
    assert value(metrics, "hotswap_requests_total", finish_reason="stop", **LABELS) == 1
    for reason in FINISH_REASONS:
        assert value(metrics, "hotswap_requests_total", finish_reason=reason, **LABELS) is not None


def test_a_sequence_that_is_computed_again_counts_once() -> None:
    metrics, now = Metrics("base"), Clock()
    clock = RequestClock([metrics._series(metrics._labels.count(KEY))], 100.0, now)
    for seconds, count in ((0.5, 1), (0.2, 3), (9.0, 0), (1.0, 1), (0.2, 2)):
        now.time += seconds
        if not count:
            clock.restart()
        clock.tokens(count)
    clock.finish("stop", 7)
    assert value(metrics, "hotswap_time_to_first_token_seconds_count", **LABELS) == 1
    assert value(metrics, "hotswap_inter_token_latency_seconds_sum", **LABELS) == pytest.approx(0.2 / 3 + 0.2 / 2)
    assert value(metrics, "hotswap_request_time_per_output_token_seconds_sum", **LABELS) == pytest.approx(0.2 / 2)
    assert value(metrics, "hotswap_generation_tokens_total", **LABELS) == 3
    assert value(metrics, "hotswap_e2e_request_latency_seconds_sum", **LABELS) == pytest.approx(10.9)
    assert clock.ttft is None, "no canary is judged by it"


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("time_to_first_token_seconds", TTFT_BUCKETS),
        ("inter_token_latency_seconds", TOKEN_BUCKETS),
        ("request_time_per_output_token_seconds", TOKEN_BUCKETS),
        ("e2e_request_latency_seconds", REQUEST_BUCKETS),
        ("request_queue_time_seconds", REQUEST_BUCKETS),
    ],
)
def test_buckets(name: str, buckets: tuple[float, ...]) -> None:
    metrics = Metrics("base")
    metrics.clock(KEY, 0.0)
    for edge in buckets:
        assert value(metrics, f"hotswap_{name}_bucket", le=str(float(edge)), **LABELS) == 0


def test_labels_are_bounded_and_old_series_end() -> None:
    metrics = Metrics("base", max_adapters=2)
    for i in range(50):
        for _ in range(i + 1):
            metrics.clock(AdapterKey(f"a{i}", 1, "d"), 0.0).finish("stop", 1)
    metrics.error(AdapterKey("a49", 1, "d"), "oops", 500)
    adapters = {
        sample.labels["adapter"]
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if "adapter" in sample.labels
    }
    assert len(adapters) == 3
    assert "other" in adapters


def test_errors_count_under_their_adapter_though_it_never_ran_a_request() -> None:
    metrics = Metrics("base", max_adapters=2)
    for _ in range(3):
        metrics.error(KEY, "context_length_exceeded", 400)
    assert value(metrics, "hotswap_errors_total", type="context_length_exceeded", status="400", **LABELS) == 3
    assert value(metrics, "hotswap_requests_total", finish_reason="stop", **LABELS) is None
    metrics.error(None, "oops", 500)
    assert value(metrics, "hotswap_errors_total", model="base", adapter="", version="", type="oops", status="500") == 1


def test_errors_keep_to_the_bound_and_what_other_has_counted_stays() -> None:
    metrics = Metrics("base", max_adapters=1)
    for _ in range(10):
        metrics.clock(KEY, 0.0).finish("stop", 1)
    for _ in range(25):
        metrics.error(AdapterKey("b", 1, "d"), "oops", 500)  # twice as busy as the other, from the twentieth on
    counted = {
        sample.labels["adapter"]: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == "hotswap_errors_total"
    }
    assert counted == {"other": 19, "b": 6}


def test_the_engines_statistics_are_read_when_scraped() -> None:
    stats = EngineStats()
    metrics = Metrics("base", stats=lambda: stats, restarts=lambda: 4)
    assert value(metrics, "hotswap_kv_cache_usage_ratio", model="base") == 0
    stats = EngineStats(
        num_running=3,
        num_waiting=2,
        running_adapters=["b", "a", "a"],
        waiting_adapters=["c"],
        kv_blocks_used=1,
        kv_blocks_total=4,
        preemptions=9,
        prefix_cache_queries=10,
        prefix_cache_hits=5,
        adapters_resident=2,
        adapter_bytes=1000,
    )
    assert value(metrics, "hotswap_requests_running", model="base") == 3
    assert value(metrics, "hotswap_requests_waiting", model="base") == 2
    assert value(metrics, "hotswap_kv_cache_usage_ratio", model="base") == 0.25
    assert value(metrics, "hotswap_preemptions_total", model="base") == 9
    assert value(metrics, "hotswap_prefix_cache_hits_total", model="base") == 5
    assert value(metrics, "hotswap_engine_restarts_total", model="base") == 4
    assert value(metrics, "hotswap_adapter_bytes", model="base", tier="device") == 1000
    assert value(metrics, "vllm:kv_cache_usage_perc", model_name="base") == 0.25
    lora = {"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": "c"}
    assert (value(metrics, "vllm:lora_requests_info", **lora) or 0) > 1.7e9


def test_steps() -> None:
    metrics = Metrics("base")
    for stats, seconds in (
        (EngineStats(steps=1, batch_requests=4, batch_tokens=40), 0.5),
        (EngineStats(steps=1, batch_requests=4, batch_tokens=40), 0.0),  # news only
        (EngineStats(steps=2, batch_requests=6, batch_tokens=42), 0.25),
        (EngineStats(steps=1, batch_requests=1, batch_tokens=3), 0.125),  # the engine began anew
    ):
        metrics.observe_step(StepOutputs([], stats, seconds))
    assert value(metrics, "hotswap_engine_step_seconds_count", model="base") == 3
    assert value(metrics, "hotswap_engine_step_seconds_sum", model="base") == 0.875
    assert value(metrics, "hotswap_batch_requests_sum", model="base") == 7
    assert value(metrics, "hotswap_batch_tokens_sum", model="base") == 45


def test_adapters_coming_and_going() -> None:
    states = {VersionState.LIVE: 2, VersionState.CANDIDATE: 1}
    metrics = Metrics("base", versions=lambda: states)
    loaded = AdapterLoaded(key=KEY, kind="lora", nbytes=1, num_virtual_tokens=0, seconds={"read": 0.5, "copy": 0.1})
    for _ in range(2):
        metrics.adapter_loaded(loaded)
    actions: tuple[Action, ...] = get_args(Action)
    for action in actions:
        metrics.name_changed(KEY, action)
    metrics.adapter_refused("base_mismatch")
    metrics.retire(KEY)
    assert value(metrics, "hotswap_adapter_load_seconds_sum", stage="read") == 1.0
    assert [value(metrics, "hotswap_adapter_swaps_total", action=a) for a in actions] == [1] * len(actions)
    counted = [value(metrics, "hotswap_adapter_versions", model="base", state=s.value) for s in VersionState]
    assert dict(zip(VersionState, counted, strict=True)) == {
        "live": 2, "canary": 0, "shadow": 0, "candidate": 1, "draining": 0, "stored": 0, "failed": 0,
    }  # fmt: skip
    assert value(metrics, "hotswap_adapter_load_errors_total", code="base_mismatch") == 1
    assert (value(metrics, "hotswap_adapter_change_timestamp_seconds", action="rollback", **LABELS) or 0) > 1.7e9


def test_info() -> None:
    metrics = Metrics("base")
    info = EngineInfo(
        base_fingerprint="f", quantization="nf4", dtype="float32", device="cpu", base_bytes=5, kv_bytes=7,
        num_kv_blocks=1, block_size=1, max_model_len=1, vocab_size=1, eos_token_ids=[],
    )  # fmt: skip
    metrics.set_info("1.2", info)
    assert value(metrics, "hotswap_build_info", version="1.2") == 1
    text = metrics.render().decode()
    assert 'quantization="nf4"' in text
    assert value(metrics, "hotswap_base_bytes", model="base") == 5
    assert value(metrics, "hotswap_kv_cache_bytes", model="base") == 7


def test_a_scrape_leaves_the_event_loop_to_others() -> None:
    metrics = Metrics("base")
    for number in range(100):
        metrics.clock(AdapterKey(f"a{number}", 1, "0" * 64), 0.0).finish("stop", 1)

    async def scrape() -> tuple[bytes, int]:
        running, turns = asyncio.create_task(metrics.render_off_loop()), 0
        while not running.done():
            await asyncio.sleep(0)
            turns += 1
        return running.result(), turns

    text, turns = asyncio.run(scrape())
    assert b'adapter="a99"' in text
    assert turns > 10


def test_two_servers_share_nothing() -> None:
    first, second = Metrics("base"), Metrics("base")
    first.clock(KEY, 0.0).finish("stop", 1)
    assert value(second, "hotswap_requests_total", finish_reason="stop", **LABELS) is None
