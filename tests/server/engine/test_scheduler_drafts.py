"""Tokens drafted for a request share the step with prompts, and the blocks with everybody."""

from __future__ import annotations

from typing import Any

from server.engine.request import Request
from server.engine.scheduler import Scheduler
from tests.server.engine.scheduling import add, finish_step, make_scheduler, step


def drafting(num_blocks: int, drafted: int, **config: Any) -> tuple[Scheduler, Request]:
    """A request of five tokens that has generated one, in two blocks, and has tokens drafted."""
    scheduler = make_scheduler(num_blocks, **config)
    request = add(scheduler, "a", 5)
    step(scheduler)
    request.draft = [8] * drafted
    return scheduler, request


def test_drafts_are_computed_beside_the_tokens_of_a_step() -> None:
    scheduler, request = drafting(8, 6)
    output = scheduler.schedule()
    scheduler.check_integrity()
    assert output.num_tokens == {"a": 1}
    assert request.draft == [8] * 6
    assert len(request.block_table) == 3
    finish_step(scheduler, output, accepted=1)
    assert request.draft == []
    assert request.token_ids[-2:] == [8, 7]
    assert request.num_pending_tokens == 1
    assert len(request.block_table) == 2, "what only refused tokens needed is free again"


def test_only_accepted_tokens_are_found_in_the_cache() -> None:
    scheduler, request = drafting(8, 6)
    finish_step(scheduler, scheduler.schedule(), accepted=2)
    sequence = list(request.token_ids)
    scheduler.remove(request)
    for ids, found in (([*sequence, 1], 8), ([*sequence[:6], *[8] * 6, 1], 8), ([*sequence[:7], 1, 1], 4)):
        other = add(scheduler, "b", ids)
        scheduler.schedule()
        assert other.num_cached_tokens == found
        scheduler.remove(other)


def test_drafts_have_what_prompts_leave_of_a_step() -> None:
    scheduler, request = drafting(16, 6, tokens=12)
    add(scheduler, "b", 8)
    assert step(scheduler).num_tokens == {"a": 1, "b": 8}
    request.draft = [8] * 6
    add(scheduler, "c", 8)
    output = scheduler.schedule()
    assert output.num_tokens == {"a": 1, "b": 1, "c": 8}
    assert len(request.draft) == 2
    finish_step(scheduler, output)


def test_drafts_have_the_blocks_that_are_free() -> None:
    scheduler, request = drafting(3, 20)
    output = scheduler.schedule()
    assert len(request.draft) == 6
    finish_step(scheduler, output, accepted=6)
    request.draft = [8] * 3
    output = scheduler.schedule()
    assert output.exhausted == [request]
    assert request.draft == []


def test_a_draft_of_who_does_not_take_part_is_forgotten() -> None:
    scheduler, request = drafting(3, 4, prefix_caching=False)
    add(scheduler, "older", 1)
    scheduler.requests["older"].arrival = -1
    step(scheduler)
    scheduler.requests["older"].token_ids += [1, 2, 3]  # needs the block that is left, and one of the other's
    request.draft = [8] * 2
    scheduler.running.sort(key=lambda running: running.arrival)
    output = scheduler.schedule()
    assert output.preempted == ["a"]
    assert request.draft == []
    scheduler.check_integrity()
