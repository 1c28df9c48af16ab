"""The figures of requests and steps once more, by the names that dashboards and routers made for vLLM's servers read.

A sequence counts as a request, for here it is one. All adapters count under the name of the base, as they do there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from server.engine.messages import EngineInfo, EngineStats

LABELS = ("model_name", "engine")
ENGINE = "0"
REASONS = {"timeout": "abort"}  # theirs for ours, where they differ
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
OUTPUTS = (1, 2, 5, 10, 20)
PREEMPTIONS = (0, 1, 2, 5, 10, 20, 50, 100)


class VllmMetrics:
    """Registered with ``registry``; ``model`` is the name the base is served by."""

    def __init__(
        self, model: str, registry: CollectorRegistry, seconds: Sequence[float], first: Sequence[float],
        between: Sequence[float],
    ) -> None:  # fmt: skip
        """The buckets are of times of requests, to first tokens and between tokens."""
        self._model = model

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", text, LABELS, buckets=tuple(buckets), registry=registry).labels(
                model, ENGINE
            )

        self.first = histogram("time_to_first_token_seconds", "Arrival to the first output token.", first)
        self.between = histogram("inter_token_latency_seconds", "Between output tokens.", between)
        self.per_token = histogram("request_time_per_output_token_seconds", "Mean of a request.", between)
        self.total = histogram("e2e_request_latency_seconds", "Arrival to the end.", seconds)
        self.queued = histogram("request_queue_time_seconds", "Waiting.", seconds)
        self.inference = histogram("request_inference_time_seconds", "First scheduling to the end.", seconds)
        self.prefill = histogram("request_prefill_time_seconds", "First scheduling to the first token.", seconds)
        self.decode = histogram("request_decode_time_seconds", "First token to the last.", seconds)
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.output = histogram("request_generation_tokens", "Output tokens of a request.", TOKENS)
        self.n = histogram("request_params_n", "The n of a request.", OUTPUTS)
        self.max_tokens = histogram("request_params_max_tokens", "The max_tokens of a request.", TOKENS)
        self.preemptions = histogram("request_num_preemptions", "How often a request was put back.", PREEMPTIONS)
        self.step_tokens = histogram("iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS)
        counters = (("prompt_tokens", "Prompt tokens."), ("generation_tokens", "Output tokens."))
        self.prompts, self.outputs = (
            Counter(f"vllm:{name}", text, LABELS, registry=registry).labels(model, ENGINE) for name, text in counters
        )
        self._success = Counter("vllm:request_success", "Ended.", (*LABELS, "finished_reason"), registry=registry)
        for reason in ("stop", "length", "abort", "error"):
            self.success(reason)

    def success(self, reason: str) -> Counter:
        """The counter of sequences that ended so."""
        return self._success.labels(self._model, ENGINE, reason)

    def clock(self, n: int, max_tokens: int) -> VllmClock:
        """Of one sequence of a request for ``n``."""
        return VllmClock(self, n, max_tokens)


class VllmClock:
    """What is told of one sequence; times in seconds."""

    def __init__(self, metrics: VllmMetrics, n: int, max_tokens: int) -> None:
        self._metrics = metrics
        self._n = n
        self._max_tokens = max_tokens
        self._queued: float | None = None
        self._prefill = 0.0

    def first(self, seconds: float, queued: float) -> None:
        """The first token came after ``seconds``, of which ``queued`` in the queue."""
        self._queued, self._prefill = queued, max(seconds - queued, 0.0)
        self._metrics.first.observe(seconds)

    def between(self, seconds: float) -> None:
        """Another came so long after the one before."""
        self._metrics.between.observe(seconds)

    def put_back(self, times: int) -> None:
        """It has ended, and was put back so many ``times``."""
        self._metrics.preemptions.observe(times)

    def ended(self, reason: str, prompt_tokens: int, tokens: int, total: float, decode: float) -> None:
        """It has ended with so many ``tokens``, the last of them ``decode`` after the first."""
        metrics = self._metrics
        metrics.success(REASONS.get(reason, reason)).inc()
        metrics.prompts.inc(prompt_tokens)
        metrics.outputs.inc(tokens)
        metrics.prompt.observe(prompt_tokens)
        metrics.output.observe(tokens)
        metrics.n.observe(self._n)
        metrics.max_tokens.observe(self._max_tokens)
        metrics.total.observe(total)
        if self._queued is not None:
            metrics.queued.observe(self._queued)
            metrics.prefill.observe(self._prefill)
            metrics.decode.observe(decode)
            metrics.inference.observe(self._prefill + decode)
        if tokens > 1:
            metrics.per_token.observe(decode / (tokens - 1))


class VllmEngineFigures:
    """What of an engine's statistics vLLM's servers tell beside the gauges that are always told."""

    def __init__(self, model: str, info: EngineInfo) -> None:
        self._model = model
        tokens = info.num_kv_blocks * info.block_size
        self._config = {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_kv_blocks),
            "kv_cache_size_tokens": str(tokens),
            "kv_cache_max_concurrency": str(round(tokens / info.max_model_len, 2)),
            "enable_prefix_caching": "True",
        }

    def families(self, stats: EngineStats) -> Iterator[Metric]:
        """As they are now."""
        for name, text, value in (
            ("num_preemptions", "Sequences put back for lack of blocks.", stats.preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
        ):
            family = CounterMetricFamily(f"vllm:{name}", text, labels=LABELS)
            family.add_metric((self._model, ENGINE), value)
            yield family
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Waiting, for room or for what they need.",
            labels=(*LABELS, "reason"),
        )
        for reason, number in (("capacity", stats.num_waiting - stats.num_blocked), ("deferred", stats.num_blocked)):
            waiting.add_metric((self._model, ENGINE, reason), number)
        yield waiting
        names = (*self._config, "engine")
        config = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=names)
        config.add_metric((*self._config.values(), ENGINE), 1)
        yield config
