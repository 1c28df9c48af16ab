"""All metrics of one server. The busiest N adapter versions have series of their own; the rest share ``other``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from typing_extensions import override

from server.adapter_key import AdapterKey
from server.catalog.observer import Action, Evicted, LifecycleObserver
from server.catalog.places import ColdStart
from server.catalog.registry import Share
from server.catalog.versions import VersionState
from server.collectors import ChangeCollector, EngineCollector, InfoCollector, ShareCollector, VersionCollector
from server.engine.messages import AdapterLoaded, EngineInfo, EngineStats, StepOutputs
from server.metric_labels import OTHER, AdapterLabels, Label
from server.vllm_metrics import VllmClock, VllmEngineFigures, VllmMetrics

TTFT_BUCKETS = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560
)  # fmt: skip
TOKEN_BUCKETS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
REQUEST_BUCKETS = (
    .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680
)  # fmt: skip
LOAD_BUCKETS = (.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)  # fmt: skip
STEP_BUCKETS = (.001, .0025, .005, .01, .025, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10)  # fmt: skip
RESTART_BUCKETS = (.5, 1, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SHARE_BUCKETS = (.1, .25, .5, .75, .9, .95, .99, .999, 1)  # fmt: skip
RATIO_BUCKETS = (.25, .5, .75, .9, 1, 1.1, 1.25, 1.5, 2, 4, 8)  # fmt: skip
LABELS = ("model", "adapter", "version")
CopyOutcome = Literal["answered", "failed", "dropped"]
FINISH_REASONS = ("stop", "length", "abort", "timeout", "error")


@dataclass(frozen=True)
class Series:
    """The per-request metrics of one label."""

    ttft: Histogram
    itl: Histogram
    tpot: Histogram
    e2e: Histogram
    queue: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter
    drafted_tokens: Counter
    accepted_tokens: Counter
    finished: dict[str, Counter]


@dataclass(frozen=True)
class SequenceTimes:
    """When what happened to a sequence, by ``time.perf_counter``; None: it has not."""

    submitted: float
    queued_seconds: float | None
    first: float | None  # token, or vector
    last: float
    ended: float
    tokens: int
    reason: str


class RequestClock:
    """Times one sequence, for one series or several. ``tokens`` for each output, then exactly one ``finish``.

    ``ttft`` is None until the first token, and where an engine was lost: that tells nothing of the version.
    ``on_first`` is told when the first token came.
    """

    def __init__(
        self,
        series: Sequence[Series],
        started: float,
        now: Callable[[], float] = time.perf_counter,
        on_first: Callable[[float], None] = lambda now: None,
        vllm: VllmClock | None = None,
    ) -> None:
        self._vllm = vllm
        self._series = series
        self._started = started
        self._on_first = on_first
        self._now = now
        self._first = 0.0
        self._last = 0.0
        self.ttft: float | None = None
        self._drafted = self._accepted = self._preemptions = 0
        self._again = False
        self._made = now()
        self._queued: float | None = None
        self._ended: tuple[float, str] | None = None
        self.count = 0

    def tokens(self, count: int, *, queued_seconds: float = 0.0) -> None:
        """``count`` new tokens arrived."""
        if not count:
            return
        now = self._now()
        if not self.count:
            if not self._first:
                for series in self._series:
                    series.ttft.observe(now - self._started)
                    series.queue.observe(queued_seconds)
                if self._vllm is not None:
                    self._vllm.first(now - self._started, queued_seconds)
                self._queued = queued_seconds
                self.ttft = None if self._again else now - self._started
                self._on_first(now)
            self._first = now
        else:
            for series in self._series:
                series.itl.observe((now - self._last) / count)
            if self._vllm is not None:
                self._vllm.between((now - self._last) / count)
        self._last = now
        self.count += count

    def computed(self, queued_seconds: float) -> None:
        """The prompt is computed, and no token is wanted."""
        self._queued, self._first = queued_seconds, self._now()
        now = self._last = self._first
        for series in self._series:
            series.queue.observe(queued_seconds)
        if not self._again:
            self._on_first(now)

    def restart(self) -> None:
        """What came so far is lost, and is computed again."""
        self._again, self.ttft = True, None
        self.count = self._drafted = self._accepted = 0

    def drafts(self, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens that were computed in addition, ``accepted`` were right."""
        self._drafted += drafted
        self._accepted += accepted

    def preempted(self, times: int) -> None:
        """It was put back ``times`` in all."""
        self._preemptions += times

    def finish(self, reason: str, prompt_tokens: int) -> None:
        """The sequence ended, for one of FINISH_REASONS."""
        self._ended = self._now(), reason
        for series in self._series:
            series.finished[reason].inc()
            series.prompt_tokens.inc(prompt_tokens)
            series.generation_tokens.inc(self.count)
            series.drafted_tokens.inc(self._drafted)
            series.accepted_tokens.inc(self._accepted)
            series.e2e.observe(self._now() - self._started)
            if self.itl is not None:
                series.tpot.observe(self.itl)
        if self._vllm is not None:
            total, decode = self._now() - self._started, self._last - self._first
            self._vllm.ended(reason, prompt_tokens, self.count, total, decode)
            self._vllm.put_back(self._preemptions)

    @property
    def times(self) -> SequenceTimes:
        """When what happened; a sequence that has not ended is given up now."""
        ended, reason = self._ended or (self._now(), "abort")
        first = self._first or None
        return SequenceTimes(self._made, self._queued, first, self._last or ended, ended, self.count, reason)

    @property
    def itl(self) -> float | None:
        """The mean time from one token to the next; None without two."""
        return (self._last - self._first) / (self.count - 1) if self.count > 1 else None


def _versions(key: AdapterKey | None) -> tuple[AdapterKey | None, ...]:
    """What a request to ``key`` is counted under."""
    return (None,) if key is None else key.versions


class Metrics(LifecycleObserver):
    """All metrics of one server.

    ``stats``, ``restarts``, ``resumed`` (sequences that a restarted engine began anew), ``versions`` (how many there
    are in each state) and ``shares`` (of requests to names that are split) are asked at scrape time. ``model`` is the
    name the base is served by.
    """

    def __init__(
        self,
        model: str,
        *,
        stats: Callable[[], EngineStats] = EngineStats,
        restarts: Callable[[], int] = lambda: 0,
        resumed: Callable[[], int] = lambda: 0,
        versions: Callable[[], Mapping[VersionState, int]] = dict,
        stored: Callable[[], tuple[int, int]] = lambda: (0, 0),
        shares: Callable[[], Iterable[Share]] = tuple,
        max_adapters: int = 100,
        vllm: bool = False,
    ) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._labels = AdapterLabels(max_adapters, self._drop)
        self._cache: dict[Label, Series] = {}
        self._rendering = asyncio.Lock()
        self._make_request_metrics()
        self._make_adapter_metrics()
        self._make_step_metrics()
        self._engine = EngineCollector(model, stats, restarts, resumed, stored)
        self.registry.register(self._engine)
        buckets = REQUEST_BUCKETS, TTFT_BUCKETS, TOKEN_BUCKETS
        self._vllm = VllmMetrics(model, self.registry, *buckets) if vllm else None
        self.registry.register(VersionCollector(model, versions))
        self.registry.register(ShareCollector(model, shares, max_adapters))
        self.changes = ChangeCollector(model, max_adapters)
        self.registry.register(self.changes)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = LABELS) -> Histogram:
        return Histogram(f"hotswap_{name}", text, tuple(labels), buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = LABELS) -> Counter:
        return Counter(f"hotswap_{name}", text, tuple(labels), registry=self.registry)

    def _make_request_metrics(self) -> None:
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to the first output token.", TTFT_BUCKETS)
        self._itl = self._histogram("inter_token_latency_seconds", "Between output tokens.", TOKEN_BUCKETS)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean per output token after the first.", TOKEN_BUCKETS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to the end.", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to the first scheduling.", REQUEST_BUCKETS)
        self._prompt = self._counter("prompt_tokens_total", "Prompt tokens of finished sequences.")
        self._generated = self._counter("generation_tokens_total", "Output tokens of finished sequences.")
        self._drafted = self._counter("drafted_tokens_total", "Drafted tokens of finished sequences, accepted or not.")
        self._accepted = self._counter(
            "accepted_tokens_total", "Drafted tokens that were right, and are in the output."
        )
        self._requests = self._counter("requests_total", "Finished sequences.", (*LABELS, "finish_reason"))
        self._errors = self._counter("errors_total", "Requests answered by an error.", (*LABELS, "type", "status"))

        self._responses = self._counter(
            "http_responses_total", "Answers by route (other: none of ours); 0: the client left before there was one.",
            ("model", "method", "route", "status"),
        )  # fmt: skip

    def _make_adapter_metrics(self) -> None:
        self._load = self._histogram("adapter_load_seconds", "Loading an adapter.", LOAD_BUCKETS, ("stage",))
        self._cold = self._histogram(
            "adapter_cold_start_seconds",
            "First token of a request that waited for its adapter.",
            LOAD_BUCKETS,
            ("stage",),
        )
        self._reloads = self._counter("adapter_cold_loads_total", "Stored versions that came into memory.", ())
        self._evictions = self._counter("adapter_evictions_total", "Versions that left memory.", ("reason",))
        for reason in get_args(Evicted):
            self._evictions.labels(reason)
        self._swaps = self._counter("adapter_swaps_total", "Changes of what a name serves.", ("action",))
        for action in get_args(Action):
            self._swaps.labels(action)
        self._load_errors = self._counter("adapter_load_errors_total", "Packages refused.", ("code",))
        self._fallbacks = self._counter(
            "canary_fallbacks_total", "Requests of a canary that cannot be served; the live version answers them."
        )
        self._copies = self._counter(
            "shadow_requests_total", "Copies to a shadow: answered, failed, or dropped for clients.",
            (*LABELS, "outcome"),
        )  # fmt: skip
        self._agreement = self._histogram(
            "shadow_agreement_ratio", "Share of equal tokens up to the first difference.", SHARE_BUCKETS
        )
        self._shadow_ratio = self._histogram(
            "shadow_latency_ratio", "Time per token by that of the live version.", RATIO_BUCKETS
        )

    def _make_step_metrics(self) -> None:
        self._step = self._histogram("engine_step_seconds", "Duration of engine steps.", STEP_BUCKETS, ("model",))
        self._restart = self._histogram(
            "engine_restart_seconds", "Loss of the engine to its next service.", RESTART_BUCKETS, ("model", "stage")
        )
        for stage in ("serving", "first_token"):  # a first restart is to be seen as one
            self._restart.labels(self._model, stage)
        self._batch = self._histogram("batch_requests", "Sequences in one step.", BATCH_BUCKETS, ("model",))
        self._batch_tokens = self._histogram("batch_tokens", "Tokens in one step.", BATCH_BUCKETS, ("model",))
        self._totals = EngineStats()

    def observe_step(self, step: StepOutputs) -> None:
        """One step of the engine. Its statistics are running totals, which begin anew when the engine restarts."""
        before, after = self._totals, step.stats
        self._totals = after
        if after.steps == before.steps:
            return  # news without computing: an abort, a change of adapters
        if after.steps < before.steps:
            before = EngineStats()
        self._step.labels(self._model).observe(step.step_seconds)
        self._batch.labels(self._model).observe(after.batch_requests - before.batch_requests)
        self._batch_tokens.labels(self._model).observe(after.batch_tokens - before.batch_tokens)
        if self._vllm is not None:
            self._vllm.step_tokens.observe(after.batch_tokens - before.batch_tokens)

    def engine_recovered(self, stage: str, seconds: float) -> None:
        """An engine took the place of one that was lost ``seconds`` ago: it serves, or its first token came."""
        self._restart.labels(self._model, stage).observe(seconds)

    def clock(
        self, key: AdapterKey | None, started: float, cold: ColdStart | None = None, *, n: int = 1, max_tokens: int = 0
    ) -> RequestClock:
        """The clock of one sequence for ``key`` (None: the base) that arrived at ``started`` (perf_counter).

        A combination counts under each of its members. ``cold``: its adapter was loaded for it.
        """
        series = [self._series(self._labels.count(version)) for version in _versions(key)]
        vllm = self._vllm.clock(n, max_tokens) if self._vllm is not None else None
        if cold is None:
            return RequestClock(series, started, vllm=vllm)
        return RequestClock(series, started, on_first=partial(self._cold_first, cold), vllm=vllm)

    def _cold_first(self, cold: ColdStart, now: float) -> None:
        for stage, seconds in {**cold.seconds, "prefill": now - cold.ended}.items():
            self._cold.labels(stage).observe(seconds)

    def error(self, key: AdapterKey | None, kind: str, status: int) -> None:
        """A request for ``key`` was answered by an error of type ``kind``, be it before anything ran.

        ``status`` is its HTTP status, though a stream may have begun with 200.
        """
        for version in _versions(key):
            self._errors.labels(self._model, *self._label(version), kind, str(status)).inc()

    def answered(self, method: str, route: str, status: int) -> None:
        """An HTTP request was answered."""
        self._responses.labels(self._model, method, route, str(status)).inc()

    @override
    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        """An adapter version became resident."""
        for stage, seconds in loaded.seconds.items():
            self._load.labels(stage).observe(seconds)

    @override
    def adapter_came_back(self, seconds: Mapping[str, float]) -> None:
        """A stored version became resident."""
        self._reloads.inc()
        for stage, took in seconds.items():
            self._load.labels(stage).observe(took)

    @override
    def adapter_evicted(self, why: Evicted) -> None:
        """A version left memory."""
        self._evictions.labels(why).inc()

    @override
    def name_changed(self, key: AdapterKey, action: Action) -> None:
        """What a name serves changed."""
        self._swaps.labels(action).inc()
        self.changes.note(key, action, time.time())

    @override
    def adapter_refused(self, code: str) -> None:
        """A package was refused."""
        self._load_errors.labels(code).inc()

    @override
    def retire(self, key: AdapterKey) -> None:
        """A version serves no new requests: its series may give place to others."""
        self._labels.retire(key)

    @override
    def shared_out(self, name: str, keys: Collection[AdapterKey]) -> None:
        """Versions that share the requests to ``name`` have series of their own."""
        self._labels.keep(name, keys)

    def fell_back(self, key: AdapterKey) -> None:
        """A request that was drawn for ``key`` goes to the live version."""
        self._fallbacks.labels(self._model, *self._label(key)).inc()

    def copied(
        self, key: AdapterKey, outcome: CopyOutcome, ratio: float | None = None, share: float | None = None
    ) -> None:
        """What became of a copy to the shadow ``key``. ``share`` of equal tokens; None: they could not be compared."""
        label = (self._model, *self._label(key))
        self._copies.labels(*label, outcome).inc()
        if ratio is not None:
            self._shadow_ratio.labels(*label).observe(ratio)
        if share is not None:
            self._agreement.labels(*label).observe(share)

    def set_info(self, version: str, info: EngineInfo) -> None:
        """Say what runs, as ``_info`` gauges."""
        self.registry.register(InfoCollector(self._model, version, info))
        if self._vllm is not None:
            self._engine.vllm = VllmEngineFigures(self._model, info)

    def render(self) -> bytes:
        """The exposition text. That of a hundred adapters takes a fifth of a second; it can be made on any thread."""
        return generate_latest(self.registry)

    async def render_off_loop(self) -> bytes:
        """Like ``render``, beside everything else; one after the other, however many ask."""
        async with self._rendering:
            return await asyncio.to_thread(self.render)

    def _label(self, key: AdapterKey | None) -> Label:
        """The label of ``key`` for what is no sequence of a client's."""
        label = self._labels.current(key)
        return self._labels.count(key) if label == OTHER else label  # perhaps it never ran: else it was counted then

    def _series(self, label: Label) -> Series:
        if label not in self._cache:
            values = (self._model, *label)
            self._cache[label] = Series(
                ttft=self._ttft.labels(*values),
                itl=self._itl.labels(*values),
                tpot=self._tpot.labels(*values),
                e2e=self._e2e.labels(*values),
                queue=self._queue.labels(*values),
                prompt_tokens=self._prompt.labels(*values),
                generation_tokens=self._generated.labels(*values),
                drafted_tokens=self._drafted.labels(*values),
                accepted_tokens=self._accepted.labels(*values),
                finished={reason: self._requests.labels(*values, reason) for reason in FINISH_REASONS},
            )
        return self._cache[label]

    def _drop(self, label: Label) -> None:
        self._cache.pop(label, None)
        by_label = {"model": self._model, "adapter": label[0], "version": label[1]}
        for metric in (
            self._ttft, self._itl, self._tpot, self._e2e, self._queue,
            self._prompt, self._generated, self._drafted, self._accepted, self._requests, self._errors,
            self._fallbacks, self._copies, self._agreement, self._shadow_ratio,
        ):  # fmt: skip
            metric.remove_by_labels(by_label)
