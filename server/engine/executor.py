"""Runs one step's work through model and sampler; when that raises, finds the requests at fault.

Does not change requests: it may run them twice, which is safe because positions and KV slots are given.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from server.engine.batch import Batch, Work, make_batch
from server.engine.logprobs import token_logprobs
from server.engine.messages import TokenLogprobs
from server.engine.runner import Runner
from server.engine.sampler import NonFiniteLogitsError, Sampler

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "The engine failed while computing this request; other requests were not affected."
NON_FINITE = "The model computed values that are not finite for this request; its adapter may be broken."


@dataclass(frozen=True)
class StepResult:
    """What a step found for one request: a token if one was due, or why it failed."""

    work: Work
    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str | None = None


class Executor:
    """Model and sampler behind one call."""

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def run(self, work: Sequence[Work]) -> list[StepResult]:
        """Results in the order of ``work``. What raises is run again in halves, down to the single request."""
        if not work:
            return []
        try:
            return self._run(make_batch(work))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must cost only the requests that cause it
            failure = error
        if len(work) == 1:
            return [_failed(work[0], failure)]
        half = len(work) // 2
        return self.run(work[:half]) + self.run(work[half:])

    def _run(self, batch: Batch) -> list[StepResult]:
        logits = self._runner.execute(batch.inputs)
        every_row = len(batch.sample_rows) == len(logits)
        sampled = self._sampler.sample(logits if every_row else logits[batch.sample_rows], batch.sampling)
        tokens = iter(zip(sampled.token_ids, sampled.logprobs, strict=True))
        results = []
        for work, rows in zip(batch.work, batch.prompt_rows, strict=True):
            token, logprobs = next(tokens) if work.samples else (None, None)
            prompt_logprobs = _prompt_logprobs(work, logits[rows.start : rows.stop]) if rows else []
            results.append(StepResult(work, token, logprobs, prompt_logprobs))
        return results


def _failed(work: Work, error: Exception) -> StepResult:
    request = work.request
    logger.error("request %s failed (adapter %s)", request.request_id, request.adapter, exc_info=error)
    return StepResult(work, error=NON_FINITE if isinstance(error, NonFiniteLogitsError) else INTERNAL_ERROR)


def _prompt_logprobs(work: Work, logits: Tensor) -> list[TokenLogprobs]:
    request = work.request
    assert request.sampling.prompt_logprobs is not None
    targets = [request.token_ids[i] for i in work.prompt_targets]
    return token_logprobs(logits, targets, [request.sampling.prompt_logprobs] * len(targets))
