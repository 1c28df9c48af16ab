"""Steps of a scheduler without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.adapter_key import AdapterKey
from server.engine.block_manager import BlockManager
from server.engine.messages import FinishReason
from server.engine.request import Request
from server.engine.scheduler import AdapterSlot, Scheduler, SchedulerConfig, SchedulerOutput
from tests.server.engine.requests import make_request


def make_scheduler(
    num_blocks: int = 16,
    *,
    block_size: int = 4,
    tokens: int = 64,
    seqs: int = 8,
    clock: Callable[[], float] | None = None,
    **rest: Any,
) -> Scheduler:
    config = SchedulerConfig(max_num_batched_tokens=tokens, max_num_seqs=seqs, **rest)
    return Scheduler(config, BlockManager(num_blocks, block_size), clock or (lambda: 0.0))


def add(
    scheduler: Scheduler, name: str, prompt: list[int] | int, adapter: AdapterKey | None = None, **params: Any
) -> Request:
    ids = prompt if isinstance(prompt, list) else [hash((name, i)) % 1000 for i in range(prompt)]
    slot = scheduler.slots.get(adapter, AdapterSlot())
    request = make_request(
        name, ids, adapter, arrival=len(scheduler.requests), num_virtual_tokens=slot.num_virtual_tokens, **params
    )
    scheduler.add(request)
    return request


def finish_step(scheduler: Scheduler, output: SchedulerOutput, accepted: int = 0) -> list[Request]:
    """What the engine does after the model ran, without a model; returns the requests that ended.

    Up to ``accepted`` tokens of each draft hold.
    """
    ended = list(output.exhausted)
    for request_id, count in output.num_tokens.items():
        request = scheduler.requests[request_id]
        held = request.draft[:accepted]
        if request.num_pending_tokens == count:
            reasons = [request.append(token) for token in (*held, 7)]
            for _ in reasons:
                scheduler.waiting.charge_output(request)
            assert set(reasons[:-1]) <= {None}, "no more is drafted than is still to come"
            ended += [request] if reasons[-1] is FinishReason.LENGTH else []
        scheduler.update(request, count + len(held))
    for request in ended:
        scheduler.remove(request)
    scheduler.check_integrity()
    return ended


def step(scheduler: Scheduler, prompt_tokens: int | None = None) -> SchedulerOutput:
    output = scheduler.schedule(prompt_tokens)
    scheduler.check_integrity()
    finish_step(scheduler, output)
    return output
