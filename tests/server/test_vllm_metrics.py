"""The figures by the names that vLLM's servers have."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.factory import make_base
from tests.server.live import live_server


def test_what_a_dashboard_made_for_vllm_reads(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tiny", max_position_embeddings=256)
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 10, "ignore_eos": True, "speculation": False}
    with live_server(base, tmp_path / "data", vllm_metrics=True) as live, live.http() as http:
        for n in (1, 1, 2):
            live.post("/v1/completions", {**body, "n": n})
        live.wait_idle()
        families = list(text_string_to_metric_families(http.get("/metrics").text))
    samples = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("model_name") == "tiny" and "le" not in sample.labels
    }
    sequences = 4
    for name in ("time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time",
                 "request_inference_time", "e2e_request_latency", "request_time_per_output_token"):  # fmt: skip
        assert samples[f"vllm:{name}_seconds_count", None] == sequences, name
    assert samples["vllm:inter_token_latency_seconds_count", None] == sequences * 9
    for name, total in (("prompt", 4), ("generation", 10)):
        assert samples[f"vllm:{name}_tokens_total", None] == sequences * total
        assert samples[f"vllm:request_{name}_tokens_sum", None] == sequences * total
    assert samples["vllm:request_params_n_sum", None] == 1 + 1 + 2 + 2
    assert samples["vllm:request_params_max_tokens_sum", None] == sequences * 10
    assert samples["vllm:request_num_preemptions_count", None] == sequences
    assert samples["vllm:num_requests_waiting_by_reason", None] == 0
    assert samples["vllm:request_success_total", "length"] == sequences
    assert samples["vllm:request_success_total", "abort"] == 0
    assert samples["vllm:iteration_tokens_total_sum", None] > 0
    parts = (
        samples["vllm:request_prefill_time_seconds_sum", None] + samples["vllm:request_decode_time_seconds_sum", None]
    )
    assert abs(samples["vllm:request_inference_time_seconds_sum", None] - parts) < 1e-6
    assert samples["vllm:e2e_request_latency_seconds_sum", None] >= parts
    assert samples["vllm:prefix_cache_queries_total", None] > 0
    (config,) = (family.samples[0].labels for family in families if family.name == "vllm:cache_config_info")
    assert float(config["kv_cache_max_concurrency"]) > 0
    assert int(config["kv_cache_size_tokens"]) == int(config["num_gpu_blocks"]) * int(config["block_size"])
