"""What is read when Prometheus scrapes: the engine's own statistics, the versions by state, and what runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from server.adapter_key import AdapterKey
from server.batches.batch import BatchStatus
from server.batches.figures import BatchFigures
from server.catalog.observer import Action
from server.catalog.registry import Share
from server.catalog.versions import VersionState
from server.engine.messages import EngineInfo, EngineStats
from server.fine_tuning.figures import JobFigures
from server.fine_tuning.job import Status
from server.vllm_metrics import VllmEngineFigures

Label = TypeVar("Label", bound=str)


def _count(family: GaugeMetricFamily | CounterMetricFamily, model: str, counts: Mapping[Label, int]) -> None:
    """Add what was counted under each value of the label that stands beside ``model``."""
    for value, count in counts.items():
        family.add_metric((model, value), count)


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
        parts = CounterMetricFamily(
            "hotswap_engine_step_part_seconds", "Time of engine steps by what took it.", labels=("model", "part")
        )
        for part, seconds in _parts(stats).items():
            parts.add_metric((self._model, part), seconds)
        yield parts

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
        _count(family, self._model, {state.value: counts.get(state, 0) for state in VersionState})
        yield family


class JobCollector(Collector):
    """How many jobs there are by status, as they were seen last, what of them was done here, and how far runs are."""

    def __init__(self, model: str, figures: JobFigures) -> None:
        self._model = model
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """Gauges by status and by run, of which there are as many as may run at once, and counters."""
        figures, own = self._figures, (self._model,)
        jobs = GaugeMetricFamily(
            "hotswap_fine_tuning_jobs", "Fine-tuning jobs in the catalog by status.", labels=("model", "status")
        )
        _count(jobs, self._model, {status.value: figures.counts.get(status.value, 0) for status in Status})
        ended = CounterMetricFamily(
            "hotswap_fine_tuning_jobs_ended", "Jobs that ended on this server.", labels=("model", "status")
        )
        _count(ended, self._model, figures.ended)
        seconds = CounterMetricFamily(
            "hotswap_fine_tuning_seconds", "Seconds that runs of this server's jobs took.", labels=("model",)
        )
        seconds.add_metric(own, figures.seconds)
        tokens = CounterMetricFamily(
            "hotswap_fine_tuning_tokens", "Tokens that this server's jobs were trained on.", labels=("model",)
        )
        tokens.add_metric(own, figures.tokens)
        yield from (jobs, ended, seconds, tokens, *self._of_runs())

    def _of_runs(self) -> Iterator[Metric]:
        progress = GaugeMetricFamily(
            "hotswap_fine_tuning_progress_ratio", "Done steps of a running job, 0 to 1.", labels=("model", "job")
        )
        losses = GaugeMetricFamily(
            "hotswap_fine_tuning_loss", "The newest loss of a running job.", labels=("model", "job", "rows")
        )
        for job, run in self._figures.running:
            progress.add_metric((self._model, job), run.share)
            for rows, loss in (("training", run.train_loss), ("validation", run.valid_loss)):
                if loss is not None:
                    losses.add_metric((self._model, job, rows), loss)
        yield from (progress, losses)


class BatchCollector(Collector):
    """How many batches there are by status, as they were seen last, and what of their requests is done here."""

    def __init__(self, model: str, figures: BatchFigures) -> None:
        self._model = model
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """Gauges of what is to be done, and counters of what was."""
        figures, own = self._figures, (self._model,)
        batches = GaugeMetricFamily("hotswap_batches", "Batches in the catalog by status.", labels=("model", "status"))
        _count(batches, self._model, {status.value: figures.counts.get(status.value, 0) for status in BatchStatus})
        ended = CounterMetricFamily(
            "hotswap_batches_ended", "Batches that ended on this server.", labels=("model", "status")
        )
        _count(ended, self._model, figures.ended)
        requests = CounterMetricFamily(
            "hotswap_batches_requests", "Requests of batches by what became of them here.", labels=("model", "outcome")
        )
        _count(requests, self._model, figures.requests)
        yield from (batches, ended, requests)
        for name, text, value in (
            ("requests_running", "Requests of batches that are sent and not answered.", figures.running),
            ("requests_waiting", "Requests of this server's batches that are not sent yet.", figures.waiting),
            ("oldest_seconds", "Age of the oldest batch in the catalog that has not ended.", figures.oldest_seconds),
        ):
            family = GaugeMetricFamily(f"hotswap_batches_{name}", text, labels=("model",))
            family.add_metric(own, value)
            yield family


class ChangeCollector(Collector):
    """When names came to serve something else: the newest ``most`` changes, so that graphs can mark them."""

    def __init__(self, model: str, most: int) -> None:
        self._model = model
        self._most = most
        self._changes: dict[tuple[str, str, str], float] = {}  # oldest first

    def note(self, key: AdapterKey, action: Action, now: float) -> None:
        """A change at ``now``, in Unix seconds."""
        label = key.name, str(key.version), action
        self._changes.pop(label, None)
        self._changes[label] = now
        if len(self._changes) > self._most:
            del self._changes[next(iter(self._changes))]

    def clear(self) -> None:
        """What was noted so far was no change: the server has started."""
        self._changes.clear()

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """One gauge."""
        family = GaugeMetricFamily(
            "hotswap_adapter_change_timestamp_seconds",
            "When what a name serves changed, in Unix seconds.",
            labels=("model", "adapter", "version", "action"),
        )
        for label, moment in list(self._changes.items()):
            family.add_metric((self._model, *label), moment)
        yield family


class DiskCollector(Collector):
    """The file system of the folder that a server keeps everything in."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """Two gauges; none where the file system does not answer."""
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return
        for name, text, nbytes in (
            ("hotswap_disk_size_bytes", "Size of the file system of --data-dir.", usage.total),
            ("hotswap_disk_free_bytes", "What is free of it.", usage.free),
        ):
            family = GaugeMetricFamily(name, text, labels=("model",))
            family.add_metric((self._model,), nbytes)
            yield family


class LimitCollector(Collector):
    """What the settings allow, for the figures that come near it; no row where they allow any number."""

    def __init__(self, model: str, *, requests: int, adapter_bytes: Mapping[str, int]) -> None:
        """``requests`` are sequences that run or wait at once, ``adapter_bytes`` what adapters may weigh by tier."""
        self._model = model
        self._requests = requests
        self._bytes = adapter_bytes

    def describe(self) -> Iterable[Metric]:
        """Nothing up front, as the others."""
        return []

    @override
    def collect(self) -> Iterator[Metric]:
        """Two gauges."""
        requests = GaugeMetricFamily(
            "hotswap_requests_limit", "Sequences that may run or wait before more are refused.", labels=("model",)
        )
        requests.add_metric((self._model,), self._requests)
        yield requests
        weights = GaugeMetricFamily(
            "hotswap_adapter_limit_bytes", "What adapters may weigh by tier.", labels=("model", "tier")
        )
        for tier, nbytes in self._bytes.items():
            if nbytes:
                weights.add_metric((self._model, tier), nbytes)
        yield weights


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


def _parts(stats: EngineStats) -> dict[str, float]:
    """Seconds of all steps by part; ``other`` is the layout of batches and what is told of results."""
    told = {"schedule": stats.schedule_seconds, "forward": stats.forward_seconds, "sample": stats.sample_seconds}
    return {**told, "other": max(stats.step_seconds - sum(told.values()), 0.0)}


def _usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
