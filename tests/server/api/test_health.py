from __future__ import annotations

from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.api.support import BASE
from tests.server.live import Live

PARTS = ("schedule", "forward", "sample", "other")


def test_probes(server: Live) -> None:
    with server.http() as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").json() == {"status": "ready"}
        assert http.get("/version").json() == {"version": version("hotswap")}


def test_metrics_of_a_request(server: Live) -> None:
    labels = {"model": BASE, "adapter": "prompt", "version": "1"}

    def samples() -> dict[str, float]:
        with server.http() as http:
            response = http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(response.text)
        return {
            sample.name + sample.labels.get("finish_reason", ""): sample.value
            for family in families
            for sample in family.samples
            if labels.items() <= sample.labels.items() and "le" not in sample.labels
        }

    def run() -> None:
        body = {"model": "prompt", "prompt": "abc", "max_tokens": 5, "ignore_eos": True, "speculation": False}
        server.post("/v1/completions", body)

    run()
    before = samples()
    run()
    after = samples()
    grown = {name: after[name] - before[name] for name in before if not name.endswith("_created")}
    assert grown["hotswap_prompt_tokens_total"] == 3
    assert grown["hotswap_generation_tokens_total"] == 5
    assert grown["hotswap_drafted_tokens_total"] == grown["hotswap_accepted_tokens_total"] == 0
    assert grown["hotswap_requests_totallength"] == 1
    assert grown["hotswap_time_to_first_token_seconds_count"] == 1
    assert grown["hotswap_inter_token_latency_seconds_count"] == 4
    assert grown["hotswap_request_time_per_output_token_seconds_count"] == 1
    assert grown["hotswap_e2e_request_latency_seconds_count"] == 1
    assert grown["hotswap_request_queue_time_seconds_count"] == 1
    assert 0 < grown["hotswap_time_to_first_token_seconds_sum"] <= grown["hotswap_e2e_request_latency_seconds_sum"]


def test_metrics_of_errors_and_of_the_server(server: Live) -> None:
    server.post("/v1/completions", {"model": "nobody", "prompt": "x"})
    server.post("/v1/completions", {"model": "lora", "prompt": "x", "logit_bias": {"9999": 1}})
    value = server.context.metrics.registry.get_sample_value
    unknown = {"model": BASE, "adapter": "", "version": "", "type": "model_not_found", "status": "404"}
    assert (value("hotswap_errors_total", unknown) or 0) >= 1
    assert (value("hotswap_engine_step_seconds_count", {"model": BASE}) or 0) >= 1
    assert (value("hotswap_batch_requests_sum", {"model": BASE}) or 0) >= 1
    assert value("hotswap_adapters_resident", {"model": BASE, "tier": "device"}) == server.stats.adapters_resident
    assert value("hotswap_adapter_load_seconds_count", {"stage": "read"}) is not None
    assert value("hotswap_kv_cache_usage_ratio", {"model": BASE}) is not None
    parts = [value("hotswap_engine_step_part_seconds_total", {"model": BASE, "part": part}) for part in PARTS]
    assert sum(part or 0.0 for part in parts) == pytest.approx(server.stats.step_seconds)
    assert value("hotswap_requests_limit", {"model": BASE}) == server.context.config.engine.max_num_seqs + 512
    assert (
        0
        < (value("hotswap_disk_free_bytes", {"model": BASE}) or 0)
        < (value("hotswap_disk_size_bytes", {"model": BASE}) or 0)
    )
    assert (value("process_resident_memory_bytes", {}) or 0) > 1e7
    with server.http() as http:
        text = http.get("/metrics").text
    for name in ("vllm:lora_requests_info{", "vllm:num_requests_running{", "hotswap_base_info{", "hotswap_build_info{"):
        assert name in text


def test_answers_are_counted_by_route(server: Live) -> None:
    def count(method: str, route: str, status: int) -> float:
        labels = {"model": BASE, "method": method, "route": route, "status": str(status)}
        return server.context.metrics.registry.get_sample_value("hotswap_http_responses_total", labels) or 0.0

    expected = (
        ("GET", "/v1/adapters/lora/", ("GET", "/v1/adapters/{name}", 200)),
        ("HEAD", "/adapters/lora", ("HEAD", "/v1/adapters/{name}", 200)),
        ("DELETE", "/v1/files", ("DELETE", "/v1/files", 405)),
        ("BREW", "/v1/files", ("other", "/v1/files", 405)),
        ("GET", "/coffee/1", ("GET", "other", 404)),
        ("POST", "/v1/completions", ("POST", "/v1/completions", 400)),
    )
    for method, path, counted in expected:
        before = count(*counted)
        with server.http() as http:
            http.request(method, path)
        server.wait(lambda: count(*counted) == before + 1, f"{method} {path} to be counted")  # noqa: B023
