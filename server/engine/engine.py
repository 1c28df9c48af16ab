"""The engine: requests in, tokens out, one ``step`` at a time.

Single-threaded but for the loader of adapters; knows token ids only. Whoever calls ``step`` owns the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.engine.adapter_manager import AdapterManager
from server.engine.block_manager import BlockManager
from server.engine.draft_size import DraftSize
from server.engine.executor import Executor, Runner, StepResult, scheduled_work
from server.engine.grammar_compiler import GrammarCompiler
from server.engine.messages import (
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    Pooling,
    RequestOutput,
    StepOutputs,
    TokenLogprobs,
)
from server.engine.request import Request, activation_start, find_problem
from server.engine.sampling.sampler import Sampler
from server.engine.scheduler import Scheduler, SchedulerConfig, SchedulerOutput
from server.engine.step_budget import StepBudget
from server.engine.tried import TriedContents
from server.engine.vocabulary import base_vocabulary
from server.errors import InvalidRequestError

KV_EXHAUSTED = "The prompt does not fit into the KV cache beside the resident prefix adapters."
NOT_RESIDENT = "The adapter {} is not loaded."
MAX_DRAFT = 16  # tokens: twice as many would hardly gain anything even where nearly all are right
IDLE_WAIT = 0.01  # seconds that a step with nothing to compute waits for an adapter that is being loaded


@dataclass
class _Totals:
    """What all steps so far have done."""

    steps: int = 0
    step_seconds: float = 0.0
    schedule_seconds: float = 0.0
    batch_tokens: int = 0
    batch_requests: int = 0


class Engine:
    """Continuous batching over one runner. Every request added gets exactly one terminal RequestOutput."""

    def __init__(self, runner: Runner, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.runner = runner
        self._clock = clock  # by which steps are planned
        self.grammars = GrammarCompiler(partial(base_vocabulary, config))
        blocks = BlockManager(runner.num_blocks, runner.block_size)
        bounds = SchedulerConfig(
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            # An encoder reads a prompt in both directions: it cannot be cut, nor its beginning be shared.
            prefix_caching=config.prefix_caching and not runner.start_ids,
            whole_prompts=bool(runner.start_ids),
            base_fingerprint=runner.base_fingerprint,
            fair=config.scheduling == "fair",
        )
        self.scheduler = Scheduler(bounds, blocks, clock)
        tried = TriedContents(Path(config.tried_dir) if config.tried_dir else None, runner.how)
        self.adapters = AdapterManager(runner, self.scheduler, max_bytes=ceil(config.max_adapter_gb * 1e9), tried=tried)
        self._executor = Executor(runner, Sampler())
        self._budget = StepBudget()
        self._rows = DraftSize()
        # Drafted tokens must give what others give: where rows depend on what is beside them they might not.
        self._draft_size = self._rows if config.speculation == "auto" and runner.has_exact_rows else None
        self._arrivals = 0
        self._outputs: list[RequestOutput] = []
        self._totals = _Totals()

    # ---- requests ----

    def add_request(self, message: EngineRequest) -> None:
        """Accept a request; one that can never run is answered with an error by the next step.

        Raises ValueError when a live request has the same id.
        """
        if message.request_id in self.scheduler.requests:
            raise ValueError(f"request id {message.request_id!r} is in use")
        self._arrivals += 1
        now = self._clock()
        request = Request.make(message, arrival=self._arrivals, now=now, eos_token_ids=self.runner.eos_token_ids)
        if request.adapter is not None and not self.adapters.knows(request.adapter):
            self._end(request, FinishReason.ERROR, NOT_RESIDENT.format(request.adapter))
        else:
            self._enqueue(request)

    def abort(self, request_id: str) -> None:
        """End a request now, its blocks are free on return; unknown and ended ids are ignored."""
        request = self.scheduler.requests.get(request_id)
        if request is not None:
            self._end(request, FinishReason.ABORT)

    # ---- adapters ----

    def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> None:
        """Start loading; a later step answers with AdapterLoaded or AdapterFailed, once per key.

        Of a combination these are the packages of its members.
        """
        self.adapters.load(key, path, *others, allow_noop=allow_noop)

    def unload_adapter(self, key: AdapterKey, force: bool = False) -> None:
        """Drop an adapter when its last request has ended; ``force`` aborts those. Answered by AdapterUnloaded."""
        if force:
            for request_id in self.scheduler.users(key):
                self.abort(request_id)
        self.adapters.unload(key)

    # ---- stepping ----

    @property
    def passes(self) -> int:
        """Passes of the model so far, those within the present step included."""
        return self._executor.passes

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do, be it to wait a moment for an adapter that is being loaded."""
        waits = self.adapters.has_work or self.grammars.is_busy
        return bool(self._outputs) or self.scheduler.has_work or waits

    def step(self) -> list[FromEngine]:
        """Compute one step for all requests that are scheduled, and return everything there is to tell."""
        self._install_adapters()
        self._install_grammars()
        started = self._clock()
        self._draft()
        fixed_rows = self._rows.fixed_rows
        prompt_tokens = self._budget.prompt_tokens(self.scheduler.num_streams, fixed_rows)
        scheduled = self.scheduler.schedule(prompt_tokens, fixed_rows, self._budget.token_rows(fixed_rows))
        self._mark_scheduled(scheduled, started)
        planned = self._clock()
        results = self._executor.run(scheduled_work(scheduled, self.scheduler.requests))
        self._learn(scheduled, self._clock() - started)
        for result in results:
            self._update(result)
        self._end_exhausted(scheduled)
        return self._collect(results, planned - started, self._clock() - started)

    def stats(self) -> EngineStats:
        """Gauges of this moment and totals since the start."""
        scheduler = self.scheduler
        running = _names(scheduler.running)
        waiting = _names(r for r in scheduler.requests.values() if not r.block_table)
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            num_blocked=scheduler.num_waiting - len(scheduler.waiting),
            running_adapters=sorted(running),
            waiting_adapters=sorted(waiting),
            kv_blocks_used=scheduler.blocks.num_blocks - scheduler.blocks.num_free,
            kv_blocks_total=scheduler.blocks.num_blocks,
            prefix_cache_queries=scheduler.num_queried_tokens,
            prefix_cache_hits=scheduler.num_cached_tokens,
            preemptions=scheduler.num_preemptions,
            adapters_resident=self.adapters.num_resident,
            adapter_bytes=self.runner.adapter_bytes,
            adapters_on_host=0 if self.runner.host is None else len(self.runner.host),
            host_adapter_bytes=0 if self.runner.host is None else self.runner.host.nbytes,
            steps=self._totals.steps,
            step_seconds=self._totals.step_seconds,
            schedule_seconds=self._totals.schedule_seconds,
            forward_seconds=self._executor.forward_seconds,
            sample_seconds=self._executor.sample_seconds,
            batch_tokens=self._totals.batch_tokens,
            batch_requests=self._totals.batch_requests,
        )

    def close(self) -> None:
        """Stop the threads that load adapters and compile grammars."""
        self.adapters.close()
        self.grammars.close()

    def check_integrity(self) -> None:
        """Raise AssertionError unless all bookkeeping is consistent. May be called between any two calls."""
        self.scheduler.check_integrity()
        self.adapters.check_integrity()

    # ---- parts of a step ----

    def _install_adapters(self) -> None:
        if not (self.scheduler.has_work or self._outputs or self.adapters.events):
            (self.grammars if self.grammars.is_busy else self.adapters).wait(IDLE_WAIT)
        for key in self.adapters.install_prepared(self._budget.pause()):
            for request in self.scheduler.pop_blocked(key):
                if key in self.scheduler.slots:
                    self._enqueue(request)
                else:
                    self._end(request, FinishReason.ERROR, NOT_RESIDENT.format(key))
            self.adapters.settle(key)

    def _install_grammars(self) -> None:
        for key in self.grammars.ended():
            for request in self.scheduler.pop_blocked(key):
                self._enqueue(request)
            self.grammars.settle(key)

    def _awaited(self, request: Request) -> Hashable:
        """What a request has to wait for before it can run, beside its adapter. Raises InvalidRequestError."""
        if not request.wants_grammar:
            return None
        key = request.sampling.grammar, request.added_tokens
        request.grammar = self.grammars.get(key)
        return key if request.grammar is None else None

    def _enqueue(self, request: Request) -> None:
        """Hand a request to the scheduler, unless it is known already that it can never run."""
        slot = self.scheduler.slots.get(request.adapter)
        awaits: Hashable = None
        if slot is not None:
            try:
                awaits = self._awaited(request)
            except InvalidRequestError as error:
                self._end(request, FinishReason.ERROR, str(error), is_refusal=True)
                return
        if slot is not None and awaits is None:
            request.attach(slot.num_virtual_tokens, self.runner.max_model_len, self.runner.start_ids)
            request.activate_from = activation_start(request.prompt_ids, slot.invocation_tokens)
            vocab_size = slot.vocab_size or self.runner.vocab_size
            problem = find_problem(request, vocab_size, self.runner.max_model_len)
            if problem is not None:
                self._end(request, FinishReason.ERROR, problem)
                return
        self.scheduler.add(request, awaits)

    def _draft(self) -> None:
        """Guess how running requests go on, where it pays to have guesses computed with the next step."""
        if self._draft_size is None:
            return
        running, slots = self.scheduler.running, self.scheduler.slots
        able = [(r, r.look_up()) for r in running if r.draft_room > 0 and slots[r.adapter].has_exact_rows]
        chances = [lookup.chances(min(request.draft_room, MAX_DRAFT)) for request, lookup in able]
        generating = sum(request.num_pending_tokens == 1 for request in running)
        if self.scheduler.num_rows:  # some may be left out again
            generating = min(generating, self.scheduler.num_rows)
        for (request, lookup), count in zip(able, self._draft_size.share(generating, chances), strict=True):
            request.draft = lookup.guess(count)
            if request.draft and request.grammar is not None:
                del request.draft[request.grammar.fitting(request.draft) :]

    def _mark_scheduled(self, scheduled: SchedulerOutput, now: float) -> None:
        for request_id in scheduled.num_tokens:
            request = self.scheduler.requests[request_id]
            if request.scheduled_at is None:
                request.scheduled_at = now

    def _learn(self, scheduled: SchedulerOutput, seconds: float) -> None:
        counts = scheduled.num_tokens.values()
        if not counts:
            return
        prompts = sum(count for count in counts if count > 1)
        streams = sum(counts) - prompts
        self._budget.observe(prompts, streams, seconds)
        if not prompts:
            drafted = sum(len(self.scheduler.requests[request_id].draft) for request_id in scheduled.num_tokens)
            self._rows.observe(streams + drafted, seconds)

    def _update(self, result: StepResult) -> None:
        request = result.work.request
        if result.error is not None:
            self._end(request, FinishReason.ERROR, result.error, is_refusal=result.is_refusal)
            return
        first = request.num_output_tokens == 0
        tokens, reason = self._append(request, result.tokens)
        self.scheduler.update(request, result.work.num_tokens + max(0, len(tokens) - 1))
        if result.prompt_logprobs:
            self._tell_prompt(request, result.prompt_logprobs)
        if result.pooled is not None and request.pooled is not None:
            request.pooled.add(result.pooled)
        if tokens:
            self._tell(request, result, first=first, tokens=tokens, finish_reason=reason)
        elif request.num_pending_tokens == 0:  # only the prompt was wanted
            reason = FinishReason.LENGTH if request.pooled is None else FinishReason.STOP
            self._tell(request, result, first=True, tokens=[], finish_reason=reason)
        elif request.pooled is not None and request.pooled.params.pooling is Pooling.ALL:
            self._outputs.append(RequestOutput(request_id=request.request_id, pooled=request.pooled.take()))

    def _append(self, request: Request, tokens: list[int]) -> tuple[list[int], FinishReason | None]:
        """Add tokens up to one that ends the request; returns those added, and why it is over, if it is."""
        for i, token in enumerate(tokens):
            if i and not request.may_follow(token):
                return tokens[:i], None
            reason = request.append(token)
            self.scheduler.waiting.charge_output(request)
            if reason is not None:
                return tokens[: i + 1], reason
        return tokens, None

    def _tell_prompt(self, request: Request, values: list[TokenLogprobs]) -> None:
        """Report what this step found of the prompt: all of it at once would keep others' tokens waiting behind it."""
        part: list[TokenLogprobs | None] = [None] if request.num_prompt_logprobs == 1 else []
        part += values
        request.num_prompt_logprobs += len(values)
        self._outputs.append(RequestOutput(request_id=request.request_id, prompt_logprobs=part))

    def _tell(
        self,
        request: Request,
        result: StepResult,
        *,
        first: bool,
        tokens: list[int],
        finish_reason: FinishReason | None,
    ) -> None:
        """Report progress of a request; the ``first`` report also says how it started, the last one ends it."""
        ended = finish_reason is FinishReason.STOP
        untold = request.sampling.prompt_logprobs is not None and len(request.prompt_ids) == 1
        self._outputs.append(
            RequestOutput(
                request_id=request.request_id,
                token_ids=tokens,
                finish_reason=finish_reason,
                stop_token_id=tokens[-1] if ended and tokens and tokens[-1] in request.stop_ids else None,
                logprobs=result.logprobs and result.logprobs[: len(tokens)],
                prompt_logprobs=[None] if first and untold else None,
                cached_tokens=request.num_cached_tokens if first else 0,
                queued_seconds=(request.scheduled_at or request.arrived_at) - request.arrived_at if first else 0.0,
                drafted_tokens=len(result.work.draft),
                accepted_tokens=max(0, len(tokens) - 1),
                preemptions=request.num_preemptions if finish_reason is not None else 0,
                pooled=b"" if request.pooled is None else request.pooled.take(),
            )
        )
        if finish_reason is not None:
            self._forget(request)

    def _end(
        self, request: Request, reason: FinishReason, error: str | None = None, *, is_refusal: bool = False
    ) -> None:
        """End a request without a further token."""
        self._outputs.append(
            RequestOutput(request_id=request.request_id, finish_reason=reason, error=error, is_refusal=is_refusal)
        )
        self._forget(request)

    def _forget(self, request: Request) -> None:
        if request.request_id in self.scheduler.requests:
            self.scheduler.remove(request)
        if request.adapter is not None:
            self.adapters.settle(request.adapter)

    def _end_exhausted(self, scheduled: SchedulerOutput) -> None:
        for request in scheduled.exhausted:
            if request.num_output_tokens:
                self._end(request, FinishReason.LENGTH)
            else:
                self._end(request, FinishReason.ERROR, KV_EXHAUSTED)

    def _collect(self, results: list[StepResult], planning: float, seconds: float) -> list[FromEngine]:
        messages: list[FromEngine] = [*self.adapters.events]
        self.adapters.events.clear()
        if results:
            self._totals.steps += 1
            self._totals.step_seconds += seconds
            self._totals.schedule_seconds += planning
            self._totals.batch_requests += len(results)
            self._totals.batch_tokens += sum(result.work.num_tokens + len(result.work.draft) for result in results)
        if results or self._outputs:
            messages.append(StepOutputs(self._outputs, self.stats(), seconds if results else 0.0))
            self._outputs = []
        return messages


def _names(requests: Iterable[Request]) -> set[str]:
    """Names of the adapters that requests are for; of a combination those of its members."""
    return {version.name for request in requests if request.adapter for version in request.adapter.versions}
