"""Runs one step's work through model and sampler; when that raises, finds the requests at fault.

Does not change requests: it may run them twice, which is safe because positions and KV slots are given. Of the model
it knows ``Runner``: architecture, quantization, device and adapter mathematics are the runner's own business.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from adapters.combining import Member
from adapters.ops import Adapter
from server.adapter_key import AdapterKey, order_of
from server.engine.messages import Pooling, TokenLogprobs
from server.engine.pooling import Rows
from server.engine.request import Request
from server.engine.sampling.masks import GrammarSampler, Row
from server.engine.sampling.sampler import NonFiniteLogitsError, Sampler, token_logprobs, token_ranks
from server.engine.scheduler import SchedulerOutput
from server.model.host_tier import HostTier
from server.model.inputs import ModelInput, SequenceInput
from server.model.outputs import ModelOutput
from server.model.prepared import PreparedAdapter


class Runner(Protocol):
    """A resident base model with its KV cache and the adapters installed on it.

    Only ``prepare`` may be called from another thread than the one that steps.
    """

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def num_blocks(self) -> int:
        """KV blocks, numbered from 0; all of them are the engine's to hand out."""

    @property
    def block_size(self) -> int:
        """Positions in one KV block."""

    @property
    def max_model_len(self) -> int:
        """The most positions of one sequence."""

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end an output unless the request says otherwise."""

    @property
    def start_ids(self) -> list[int]:
        """Tokens that the decoder starts from after an encoder has read the prompt; empty without an encoder."""

    @property
    def has_exact_rows(self) -> bool:
        """Whether a row's logits are the same to the last bit whatever is computed with it, in whatever pieces."""

    @property
    def base_fingerprint(self) -> str:
        """Identifies the base's weights; part of every KV block's hash."""

    @property
    def how(self) -> str:
        """All that decides what an adapter answers on this base, beside its content."""

    @property
    def adapter_bytes(self) -> int:
        """Memory of all installed adapters."""

    @property
    def hidden_size(self) -> int:
        """Of the hidden states that ``compute`` gives; 0 where the base gives none."""

    def execute(self, inputs: ModelInput) -> Tensor:
        """The logits of ``compute`` alone."""

    def compute(self, inputs: ModelInput) -> ModelOutput:
        """Compute one step; logits fp32 [sum(len(s.logits_at)), width] in the order of ``inputs.sequences``.

        ``width`` is ``vocab_size``, or that of the adapter in the batch that knows the most tokens; logits of tokens
        that a row's adapter does not have are minus infinity.

        Must be safe to repeat on a part of the sequences after it raised: all writes are to the positions given. Has
        checkpoints (``adapters.checkpoints``), and is safe to call while another thread is held up within it.
        """

    @property
    def host(self) -> HostTier | None:
        """Adapters in host memory, where that is not the device's."""

    def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
        """Read, validate and place the package in ``path``, in the loader's thread; of ``digest`` it should be.

        Raises AdapterError.
        """

    def combine(self, members: Sequence[Member]) -> PreparedAdapter:
        """The weighted sum of adapters that were prepared, in the loader's thread. Raises UnsupportedKindError."""

    def weight(self, adapter: Adapter) -> int:
        """Bytes that installing an adapter would add; what it shares with installed ones is there."""

    def install(self, key: AdapterKey, adapter: Adapter) -> None:
        """Make a prepared adapter usable under ``key``, between two steps. Raises AdapterError."""

    def remove(self, key: AdapterKey) -> None:
        """Forget an installed adapter, between two steps."""

    def write_prefix(self, key: AdapterKey, block_table: list[int]) -> None:
        """Write the KV of an installed prefix adapter to positions ``0 .. num_virtual_tokens`` of these blocks."""


@dataclass(frozen=True)
class Work:
    """The part of a step that concerns one request: ``num_tokens`` of its sequence, and a ``draft`` behind that."""

    request: Request
    num_tokens: int
    copy: tuple[int, int] | None = None
    draft: Sequence[int] = ()

    @property
    def samples(self) -> bool:
        """Whether the next token can be chosen after this: all tokens are computed, and one is wanted."""
        return self.num_tokens == self.request.num_pending_tokens and self.request.max_tokens > 0

    @property
    def num_samples(self) -> int:
        """Tokens to choose: the next one, and the one behind each that is drafted."""
        return 1 + len(self.draft) if self.samples else 0

    @property
    def hidden_rows(self) -> range:
        """Of the tokens of this step those whose hidden states are wanted."""
        pooled = self.request.pooled
        return range(0) if pooled is None else pooled.wanted(self.request.num_computed_tokens, self.num_tokens)

    @property
    def prompt_targets(self) -> range:
        """Places in the sequence of prompt tokens whose log-probabilities this step can tell for the first time."""
        request = self.request
        if not request.wants_prompt_logprobs:
            return range(0)
        first = request.num_virtual_tokens + request.num_prompt_logprobs
        start = request.num_computed_tokens + 1
        return range(max(first, start), min(request.num_prompt_tokens, start + self.num_tokens))


@dataclass(frozen=True)
class Batch:
    """A model input and its work in the same order. Logits rows: per work its prompt rows, then its sample rows."""

    work: list[Work]
    inputs: ModelInput
    sample_rows: list[int]
    prompt_rows: list[range]

    @property
    def samples(self) -> list[Row]:
        """Whose tokens are to be chosen by ``sample_rows``."""
        return [Row(work.request, tuple(work.draft)) for work in self.work if work.samples]


def scheduled_work(output: SchedulerOutput, requests: dict[str, Request]) -> list[Work]:
    """A step's work, rows of the same adapter next to each other as grouped kernels like them."""
    work = [Work(requests[i], n, output.copies.get(i), requests[i].draft) for i, n in output.num_tokens.items()]
    return sorted(work, key=lambda w: order_of(w.request.adapter))


def make_batch(work: Sequence[Work]) -> Batch:
    """Lay out the model input for ``work``, in its order."""
    sequences, prompt_rows = [], []
    sample_rows: list[int] = []
    row = 0
    for item in work:
        sequence = _sequence(item)
        sequences.append(sequence)
        prompt_rows.append(range(row, row + len(item.prompt_targets)))
        row += len(sequence.logits_at)
        sample_rows += range(row - item.num_samples, row)
    copies = [item.copy for item in work if item.copy]
    return Batch(list(work), ModelInput(sequences, copies), sample_rows, prompt_rows)


def _sequence(work: Work) -> SequenceInput:
    request = work.request
    start = request.num_computed_tokens
    logits_at = [target - 1 - start for target in work.prompt_targets]
    logits_at += range(work.num_tokens - 1, work.num_tokens - 1 + work.num_samples)
    return SequenceInput(
        adapter=request.adapter,
        token_ids=[*request.token_ids[start : start + work.num_tokens], *work.draft],
        start=start,
        block_table=request.block_table,
        logits_at=logits_at,
        decoder_start=request.decoder_start,
        activate_from=request.activate_from,
        hidden_at=work.hidden_rows,
        through_head=request.pooled is not None and request.pooled.params.through_head,
        embeds=request.embeds_between(start, start + work.num_tokens),
    )


logger = logging.getLogger(__name__)
INTERNAL_ERROR = "The engine failed while computing this request; other requests were not affected."
OUT_OF_MEMORY = "The engine ran out of memory while computing this request; other requests were not affected."
NON_FINITE = "The model computed values that are not finite for this request; its adapter may be broken."


@dataclass(frozen=True)
class StepResult:
    """What a step found for one request: tokens if one was due, several if drafted ones hold, or why it failed.

    ``pooled`` is what of the hidden states that were wanted goes into ``PooledPrompt.add``. It ``is_refusal`` where the
    request itself is why.
    """

    work: Work
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    pooled: Rows | None = None
    error: str | None = None
    is_refusal: bool = False


class Executor:
    """Model and sampler behind one call."""

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self.passes = 0  # begun so far, to tell a long step from a hung one
        self.forward_seconds = self.sample_seconds = 0.0  # that passes took so far
        self._runner = runner
        self._sampler = GrammarSampler(sampler)

    def run(self, work: Sequence[Work]) -> list[StepResult]:
        """Results in the order of ``work``. What raises is run again in halves, down to the single request.

        That is run without its draft, which must not be why it fails.
        """
        if not work:
            return []
        try:
            return self._run(make_batch(work))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must cost only the requests that cause it
            if len(work) == 1 and not work[0].draft:
                return [_failed(work[0], error)]
        # Outside of the handler: the error holds the frames it went through, and with them all activations of the pass
        # that may have failed for want of memory.
        if len(work) == 1:
            return self.run([replace(work[0], draft=())])
        half = len(work) // 2
        return self.run(work[:half]) + self.run(work[half:])

    def _run(self, batch: Batch) -> list[StepResult]:
        self.passes += 1
        began = time.monotonic()
        logits, hidden = self._runner.compute(batch.inputs)
        computed = time.monotonic()
        self.forward_seconds += computed - began
        every_row = len(batch.sample_rows) == len(logits)
        sampled, stuck = self._sampler.sample(
            logits if every_row else logits[batch.sample_rows],
            batch.samples,
        )
        self.sample_seconds += time.monotonic() - computed
        chosen = iter(zip(sampled.token_ids, sampled.logprobs, strict=True))
        vectors = iter(hidden)
        results = []
        for work, rows in zip(batch.work, batch.prompt_rows, strict=True):
            if (reason := stuck.get(work.request.request_id)) is not None:
                deque(islice(chosen, work.num_samples), maxlen=0)
                results.append(StepResult(work, error=reason, is_refusal=True))
                continue
            kept = _without_refused(list(islice(chosen, work.num_samples)), work.draft)
            told = [logprobs for _, logprobs in kept if logprobs is not None]
            prompt_logprobs = _prompt_logprobs(work, logits[rows.start : rows.stop]) if rows else []
            pooled = _pooled(work, next(vectors)) if work.hidden_rows else None
            results.append(StepResult(work, [token for token, _ in kept], told or None, prompt_logprobs, pooled))
        return results


def _pooled(work: Work, rows: Tensor) -> Rows:
    """Of the wanted hidden states what is kept. Raises NonFiniteLogitsError."""
    pooled = work.request.pooled
    assert pooled is not None
    kept = rows
    if pooled.is_one_of_all:
        weights = pooled.weights(work.request.num_computed_tokens + work.hidden_rows.start, len(rows))
        if weights is not None:
            rows = rows * torch.from_numpy(weights).to(rows)[:, None]
        kept = rows.amax(0, keepdim=True) if pooled.params.pooling is Pooling.MAX else rows.sum(0, keepdim=True)
    if not bool(torch.isfinite(kept).all()):
        raise NonFiniteLogitsError("hidden states are not finite")
    found: Rows = kept.cpu().numpy()
    return found


Chosen = tuple[int, TokenLogprobs | None]


def _without_refused(chosen: list[Chosen], draft: Sequence[int]) -> list[Chosen]:
    """The tokens that hold: those chosen behind drafted tokens that were chosen themselves, and the first other one."""
    for i, (drafted, (token, _)) in enumerate(zip(draft, chosen, strict=False)):
        if token != drafted:
            return chosen[: i + 1]
    return chosen


def _failed(work: Work, error: Exception) -> StepResult:
    request = work.request
    logger.error("request %s failed (adapter %s)", request.request_id, request.adapter, exc_info=error)
    if isinstance(error, NonFiniteLogitsError):
        return StepResult(work, error=NON_FINITE)
    return StepResult(work, error=OUT_OF_MEMORY if _is_out_of_memory(error) else INTERNAL_ERROR)


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an error of its own for the device's memory, but for the CPU's only a message."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _prompt_logprobs(work: Work, logits: Tensor) -> list[TokenLogprobs]:
    request = work.request
    assert request.sampling.prompt_logprobs is not None
    targets = [request.token_ids[i] for i in work.prompt_targets]
    told = token_logprobs(logits, targets, [request.sampling.prompt_logprobs] * len(targets))
    ranks = token_ranks(logits, targets)
    return [msgspec.structs.replace(value, rank=rank) for value, rank in zip(told, ranks, strict=True)]
