"""What is read when Prometheus scrapes: the engine's own statistics, the versions by state, and what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from server.catalog.registry import Share
from server.catalog.versions import VersionState
from server.engine.messages import EngineInfo, EngineStats
from server.fine_tuning.job import Status
from server.vllm_metrics import VllmEngineFigures


class EngineCollector(Collector):
    """The engine's own statistics, read when scraped; also under the names that routers look for.

    ``stored`` is how many adapter versions are kept, and what their tensors weigh.
    """

    def __init__(
        self,
        model: str,
        stats: Callable[[], EngineStats],
        restarts: Callable[[], int],
        resumed: Callable[[], int],
        stored: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._model = model
        self._stored = stored
        self._stats = stats
        self._restarts = restarts
        self._resumed = resumed
        self.vllm: VllmEngineFigures | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: a registry that takes a collector must not ask a starting engine."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        yield from self._for_routers(stats)
        if self.vllm is not None:
            yield from self.vllm.families(stats)

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        values = {
            "requests_running": ("Sequences being computed.", stats.num_running),
            "requests_waiting": ("Sequences waiting.", stats.num_waiting),
            "kv_cache_usage_ratio": ("Used part of the KV cache, 0 to 1.", _usage(stats)),
        }
        for name, (text, value) in values.items():
            yield self._gauge(f"hotswap_{name}", text, value)
        resident = GaugeMetricFamily("hotswap_adapters_resident", "Adapter versions by tier.", labels=("model", "tier"))
        count, size = self._stored()
        resident.add_metric((self._model, "device"), stats.adapters_resident)
        resident.add_metric((self._model, "host"), stats.adapters_on_host)
        resident.add_metric((self._model, "store"), count)
        yield resident
        nbytes = GaugeMetricFamily("hotswap_adapter_bytes", "Memory of adapters by tier.", labels=("model", "tier"))
        nbytes.add_metric((self._model, "device"), stats.adapter_bytes)
        nbytes.add_metric((self._model, "host"), stats.host_adapter_bytes)
        nbytes.add_metric((self._model, "store"), size)
        yield nbytes

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        values = {
            "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            "preemptions": ("Sequences put back for lack of blocks.", stats.preemptions),
            "engine_restarts": ("Restarts of the engine process.", self._restarts()),
            "resumed_sequences": ("Sequences computed anew after a restart.", self._resumed()),
        }
        for name, (text, value) in values.items():
            family = CounterMetricFamily(f"hotswap_{name}", text, labels=("model",))
            family.add_metric((self._model,), value)
            yield family

    def _gauge(self, name: str, text: str, value: float, label: str = "model") -> Metric:
        family = GaugeMetricFamily(name, text, labels=(label,))
        family.add_metric((self._model,), value)
        return family

    def _for_routers(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("vllm:num_requests_running", "Running.", stats.num_running, "model_name")
        yield self._gauge("vllm:num_requests_waiting", "Waiting.", stats.num_waiting, "model_name")
        yield self._gauge("vllm:kv_cache_usage_perc", "KV cache usage, 0 to 1.", _usage(stats), "model_name")
        labels = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Adapters in use; the value is a timestamp.", labels=labels
        )
        # No fixed number of adapter slots exists here: memory is the limit. Routers want a number.
        most = str(max(stats.adapters_resident, 1))
        names = [",".join(sorted(set(names))) for names in (stats.running_adapters, stats.waiting_adapters)]
        family.add_metric((most, *names), time.time())
        yield family


class VersionCollector(Collector):
    """How many adapter versions there are, by what they are good for."""

    def __init__(self, model: str, versions: Callable[[], Mapping[VersionState, int]]) -> None:
        self._model = model
        self._versions = versions

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: a registry that takes a collector must not ask a starting engine."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """One gauge with every state."""
        counts = self._versions()
        family = GaugeMetricFamily("hotswap_adapter_versions", "Adapter versions by state.", labels=("model", "state"))
        for state in VersionState:
            family.add_metric((self._model, state.value), counts.get(state, 0))
        yield family


class JobCollector(Collector):
    """How many jobs there are by kind and status, as they were seen last, and the time that training has taken."""

    def __init__(self, model: str, counts: Callable[[], Mapping[str, int]], seconds: Callable[[], float]) -> None:
        self._model = model
        self._counts = counts
        self._seconds = seconds

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """A gauge by status, and a counter."""
        jobs = GaugeMetricFamily(
            "hotswap_fine_tuning_jobs", "Fine-tuning jobs in the catalog by status.", labels=("model", "status")
        )
        counts = self._counts()
        for status in Status:
            jobs.add_metric((self._model, status.value), counts.get(status.value, 0))
        yield jobs
        seconds = CounterMetricFamily(
            "hotswap_fine_tuning_seconds", "Seconds that runs of this server's jobs took.", labels=("model",)
        )
        seconds.add_metric((self._model,), self._seconds())
        yield seconds


class ShareCollector(Collector):
    """Which share of a name's requests each version gets, of names whose requests are split; at most ``most`` rows."""

    def __init__(self, model: str, shares: Callable[[], Iterable[Share]], most: int) -> None:
        self._model = model
        self._shares = shares
        self._most = most

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: a registry that takes a collector must not ask a starting server."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """One gauge: a live version and canaries share the requests, a shadow gets copies beside them."""
        labels = ("model", "adapter", "version", "role")
        family = GaugeMetricFamily("hotswap_traffic_share", "Share of the requests to a name.", labels=labels)
        for key, role, weight in islice(self._shares(), self._most):
            family.add_metric((self._model, key.name, str(key.version), role), weight)
        yield family


class InfoCollector(Collector):
    """What runs, as constant gauges of value 1, and the memory that it took when it was loaded."""

    def __init__(self, model: str, version: str, info: EngineInfo) -> None:
        self._build = {"version": version}
        self._base = {
            "model": model,
            "fingerprint": info.base_fingerprint,
            "quantization": info.quantization,
            "dtype": info.dtype,
            "kernels": info.kernels,
            "device": info.device,
            "max_model_len": str(info.max_model_len),
        }
        self._memory = {
            "hotswap_base_bytes": ("Memory of the base's weights, quantization constants included.", info.base_bytes),
            "hotswap_kv_cache_bytes": ("Memory of the KV cache, used or not.", info.kv_bytes),
        }

    def describe(self) -> Iterable[Metric]:
        """Nothing up front: a registry that takes a collector must not ask a starting engine."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        for name, (text, nbytes) in self._memory.items():
            family = GaugeMetricFamily(name, text, labels=("model",))
            family.add_metric((self._base["model"],), nbytes)
            yield family
        for name, text, labels in (
            ("hotswap_build_info", "The server's version.", self._build),
            ("hotswap_base_info", "The resident base.", self._base),
        ):
            family = GaugeMetricFamily(name, text, labels=tuple(labels))
            family.add_metric(tuple(labels.values()), 1)
            yield family


def _usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
