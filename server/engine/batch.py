"""Turns scheduled requests into one model input, and remembers which rows of logits belong to whom. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.request import Request
from server.engine.scheduler import SchedulerOutput
from server.model.inputs import ModelInput, SequenceInput


@dataclass(frozen=True)
class Work:
    """The part of a step that concerns one request."""

    request: Request
    num_tokens: int
    copy: tuple[int, int] | None = None

    @property
    def samples(self) -> bool:
        """Whether the next token can be chosen after this: all tokens are computed, and one is wanted."""
        return self.num_tokens == self.request.num_pending_tokens and self.request.max_tokens > 0

    @property
    def prompt_targets(self) -> range:
        """Places in the sequence of prompt tokens whose log-probabilities this step can tell for the first time."""
        request = self.request
        if not request.wants_prompt_logprobs:
            return range(0)
        first = request.num_virtual_tokens + len(request.prompt_logprobs)
        start = request.num_computed_tokens + 1
        return range(max(first, start), min(request.num_prompt_tokens, start + self.num_tokens))


@dataclass(frozen=True)
class Batch:
    """A model input and its work in the same order. Logits rows: per work its prompt rows, then its sample row."""

    work: list[Work]
    inputs: ModelInput
    sample_rows: list[int]
    prompt_rows: list[range]

    @property
    def sampling(self) -> list[Request]:
        """The requests of ``sample_rows``."""
        return [work.request for work in self.work if work.samples]


def scheduled_work(output: SchedulerOutput, requests: dict[str, Request]) -> list[Work]:
    """A step's work, rows of the same adapter next to each other as grouped kernels like them."""
    work = [Work(requests[i], n, output.copies.get(i)) for i, n in output.num_tokens.items()]
    return sorted(work, key=lambda w: str(w.request.adapter or ""))


def make_batch(work: Sequence[Work]) -> Batch:
    """Lay out the model input for ``work``, in its order."""
    sequences, sample_rows, prompt_rows = [], [], []
    row = 0
    for item in work:
        sequence = _sequence(item)
        sequences.append(sequence)
        prompt_rows.append(range(row, row + len(item.prompt_targets)))
        row += len(sequence.logits_at)
        if item.samples:
            sample_rows.append(row - 1)
    copies = [item.copy for item in work if item.copy]
    return Batch(list(work), ModelInput(sequences, copies), sample_rows, prompt_rows)


def _sequence(work: Work) -> SequenceInput:
    request = work.request
    start = request.num_computed_tokens
    logits_at = [target - 1 - start for target in work.prompt_targets]
    if work.samples:
        logits_at.append(work.num_tokens - 1)
    return SequenceInput(
        adapter=request.adapter,
        token_ids=request.token_ids[start : start + work.num_tokens],
        start=start,
        block_table=request.block_table,
        logits_at=logits_at,
        decoder_start=request.decoder_start,
        activate_from=request.activate_from,
    )
