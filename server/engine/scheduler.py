"""Decides how many tokens of which request are computed in a step.

There are no phases: a request wants its uncomputed tokens, be they a prompt, the rest of one, or the last output.
Bounds are the tokens and sequences of a step and the KV blocks. Knows neither the model nor what tokens mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from server.adapter_key import AdapterKey
from server.engine.block_manager import BlockManager, extend_hashes, hash_seed
from server.engine.fair_queue import FairQueue, Rank
from server.engine.fair_shares import StepShares, last_in_turn, who_yields
from server.engine.request import Request, RequestStatus

_CRUMB = 8  # a part so small of what is computed of a prompt is no step of its own


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of a step, and what seeds the hashes of KV blocks.

    With ``whole_prompts`` a prompt is computed in one step, which may then exceed ``max_num_batched_tokens``. Unless
    ``fair``, all requests have their turns in the order in which they came.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    prefix_caching: bool = True
    base_fingerprint: str = ""
    whole_prompts: bool = False
    fair: bool = True


@dataclass(frozen=True)
class AdapterSlot:
    """What must be known of a resident adapter. A prefix adapter owns ``prefix_blocks``, others none.

    ``vocab_size`` is set when it is not the base's. An adapter with ``invocation_tokens`` acts only from these on.
    Without ``has_exact_rows`` a row's last bits may depend on what is computed with it.
    """

    num_virtual_tokens: int = 0
    prefix_blocks: list[int] = field(default_factory=list)
    vocab_size: int | None = None
    invocation_tokens: tuple[int, ...] = ()
    has_exact_rows: bool = True


@dataclass(frozen=True, eq=False)
class Loan:
    """Blocks held by what is no request. ``call_in`` has them returned at once, when requests need them."""

    blocks: list[int]
    call_in: Callable[[], None]


@dataclass
class SchedulerOutput:
    """One step's work: tokens to compute by request id.

    ``copies`` (source block, target block) belong to the request they are listed under. ``preempted`` requests lost
    their blocks and wait again. ``exhausted`` ones need more blocks than there are: the engine has to end them.
    """

    num_tokens: dict[str, int] = field(default_factory=dict)
    copies: dict[str, tuple[int, int]] = field(default_factory=dict)
    preempted: list[str] = field(default_factory=list)
    exhausted: list[Request] = field(default_factory=list)


class Scheduler:
    """All live requests of an engine, and the blocks they hold."""

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting = FairQueue(fair=config.fair)
        self.blocked: dict[Hashable, list[Request]] = {}
        self.slots: dict[AdapterKey | None, AdapterSlot] = {None: AdapterSlot()}
        self._loans: list[Loan] = []
        self._clock = clock
        self._shares = StepShares(self.waiting)
        self.num_steps = 0
        self.num_rows = 0
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_cached_tokens = 0

    # ---- requests come and go ----

    def add(self, request: Request, awaits: Hashable = None) -> None:
        """Queue a request; aside until ``pop_blocked`` where its adapter is not resident, or it ``awaits`` other."""
        self.requests[request.request_id] = request
        request.awaits = awaits if request.adapter in self.slots else request.adapter
        if request.awaits is None:
            request.status = RequestStatus.WAITING
            self.waiting.enter(request)
            self.waiting.push(request)
        else:
            self.blocked.setdefault(request.awaits, []).append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is; its blocks are free at once."""
        del self.requests[request.request_id]
        if request.status is RequestStatus.BLOCKED:
            self._remove_blocked(request)
        else:
            self._leave_queue(request)
        request.status = RequestStatus.FINISHED

    def _leave_queue(self, request: Request) -> None:
        if request.status is RequestStatus.RUNNING:
            self._stop(request)
        else:
            self.waiting.remove(request)
        self.waiting.leave(request)
        self._shares.leave(request, self._clock())

    @property
    def num_waiting(self) -> int:
        """Requests that hold no blocks, whatever they wait for."""
        return len(self.requests) - len(self.running)

    @property
    def num_streams(self) -> int:
        """Requests that will generate side by side once those prompts are computed that there is room for."""
        count = sum(request.max_tokens > 1 for request in self.running)
        free = self.blocks.num_free
        for request in islice(self.waiting, self.config.max_num_seqs - len(self.running)):
            free -= self.blocks.blocks_for(len(request.token_ids))
            if free < 0:
                break
            count += request.max_tokens > 1
        return count

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: some request waits for nothing but its turn."""
        return bool(self.running or self.waiting)

    @property
    def preempted(self) -> list[Request]:
        """Requests that wait for their blocks to be computed again, in the order of arrival in each flow."""
        return [request for request in self.waiting if request.status is RequestStatus.PREEMPTED]

    # ---- adapters come and go ----

    def add_adapter(self, key: AdapterKey, slot: AdapterSlot) -> None:
        """Let requests use an adapter; those that waited for it are due for ``pop_blocked`` and ``add``."""
        self.slots[key] = slot

    def pop_blocked(self, key: Hashable) -> Iterator[Request]:
        """Take out the requests that wait for ``key``, an adapter or other, one by one: the rest still use it."""
        while key in self.blocked:
            request = self.blocked[key][0]
            self._remove_blocked(request)
            del self.requests[request.request_id]
            yield request

    def users(self, key: AdapterKey) -> list[str]:
        """Ids of the live requests of an adapter."""
        return [request.request_id for request in self.requests.values() if request.adapter == key]

    def remove_adapter(self, key: AdapterKey) -> None:
        """Forget an adapter without live requests, and free its prefix blocks."""
        assert not self.users(key)
        self.blocks.release(self.slots.pop(key).prefix_blocks)

    def reserve(self, num_blocks: int) -> list[int] | None:
        """Hold blocks for a prefix adapter, preempting requests if need be.

        None when prefix adapters would then hold more than half of all blocks: requests have to live too.
        """
        held = sum(len(slot.prefix_blocks) for slot in self.slots.values())
        if 2 * (held + num_blocks) > self.blocks.num_blocks:
            return None
        self._free(num_blocks)
        return self.blocks.allocate(num_blocks)

    def lend(self, num_blocks: int, call_in: Callable[[], None]) -> Loan | None:
        """Lend out blocks, preempting requests if need be; None when that many can never be free.

        When requests need them, ``call_in`` is called, and has to return the loan.
        """
        held = sum(len(slot.prefix_blocks) for slot in self.slots.values())
        if held + num_blocks > self.blocks.num_blocks:
            return None
        self._free(num_blocks)
        self._loans.append(loan := Loan(self.blocks.allocate(num_blocks), call_in))
        return loan

    def take_back(self, loan: Loan) -> None:
        """Have the blocks of a loan again."""
        self._loans.remove(loan)
        self.blocks.release(loan.blocks)

    def _free(self, num_blocks: int) -> None:
        while self._lacks(num_blocks):
            self._preempt(last_in_turn(self.running, self.waiting))

    def _lacks(self, num_blocks: int) -> bool:
        """Whether fewer than ``num_blocks`` are free, those that are lent included."""
        while self._loans and self.blocks.num_free < num_blocks:
            self._loans[-1].call_in()
        return self.blocks.num_free < num_blocks

    # ---- one step ----

    def schedule(
        self, prompt_tokens: int | None = None, fixed_rows: float = math.inf, token_rows: float = 1.0
    ) -> SchedulerOutput:
        """Share out the next step: tokens of those who generate, then of prompts, begun ones and waiting ones in turn.

        While some generate, at most ``prompt_tokens`` (None: any number) are of prompts, for which they have to wait.
        What a step costs besides its rows takes as long as ``fixed_rows``: the fewer, the more do rows slow down each
        other, and the fewer of one who has many are computed beside those of others. A token of a prompt takes as long
        as ``token_rows``.
        Of requests' drafts stays what there is room for beside ``num_tokens``, to be computed in the same step.
        """
        output = SchedulerOutput()
        budget = self.config.max_num_batched_tokens
        prompts = budget if prompt_tokens is None or not self._is_generating() else min(budget, prompt_tokens)
        self.num_steps += 1
        part = self._shares.divide(
            self.running,
            most=budget,
            prompt_tokens=prompts,
            fixed_rows=fixed_rows,
            token_rows=token_rows,
            step=self.num_steps,
            now=self._clock(),
        )
        if len(part.rows) > budget:
            part.rows.sort(key=lambda request: request.last_step)
        self._generate(part.rows[:budget], output)
        self.num_rows = len(output.num_tokens)
        room = budget - self.num_rows
        prompts = min(room, part.prompt_tokens)
        left = prompts - self._compute_prompts(output, prompts, room)
        self._generate(part.others[: max(left, 0)], output)
        self._cut_drafts(output)
        return output

    def _is_generating(self) -> bool:
        return any(request.num_pending_tokens == 1 for request in self.running)

    def update(self, request: Request, num_tokens: int) -> None:
        """Record that a step has computed ``num_tokens`` of a request, and publish the blocks that are full now.

        Those of its draft that hold stand in ``token_ids`` and are counted; the rest of it is forgotten.
        """
        request.num_computed_tokens += num_tokens
        self._forget_draft(request)
        if not self.config.prefix_caching:
            return
        self._extend_hashes(request)
        for i in range(request.num_published_blocks, request.num_computed_tokens // self.blocks.block_size):
            self.blocks.publish(request.block_table[i], request.block_hashes[i])
            request.num_published_blocks = i + 1

    def check_integrity(self) -> None:
        """Raise AssertionError unless every request is in one place and every block is accounted for."""
        everywhere = [*self.running, *self.waiting, *self._all_blocked()]
        assert len(everywhere) == len(self.requests), "every request is in exactly one place"
        assert {r.request_id: r for r in everywhere} == self.requests, "and known by its id"
        for status, place in self._places():
            assert all(request.status is status for request in place), "a status says where its request is"
        for request in self.requests.values():
            self._check_request(request)
        tables = [r.block_table for r in self.running] + [s.prefix_blocks for s in self.slots.values()]
        self.blocks.check_integrity([*tables, *(loan.blocks for loan in self._loans)])

    # ---- inside a step ----

    def _generate(self, rows: list[Request], output: SchedulerOutput) -> None:
        for request in rows:
            if request.status is not RequestStatus.RUNNING:  # preempted in favour of one before it
                continue
            if request.request_id not in output.num_tokens and self._grow(request, output):
                self._compute(request, 1, output)

    def _compute(self, request: Request, count: int, output: SchedulerOutput) -> None:
        output.num_tokens[request.request_id] = count
        request.last_step = self.num_steps
        paid, end = request.num_charged_tokens, min(request.num_computed_tokens + count, request.num_prompt_tokens)
        if end > paid:
            self.waiting.charge_prompt(request, end - paid)
            request.num_charged_tokens = end

    def _grow(self, request: Request, output: SchedulerOutput) -> bool:
        """Give a running request blocks for all its tokens; False when it cannot go on in this step."""
        missing = self.blocks.blocks_for(len(request.token_ids)) - len(request.block_table)
        while self._lacks(missing):
            victim = last_in_turn(self.running, self.waiting)
            if victim is request and len(self.running) == 1:
                output.exhausted.append(request)
                return False
            self._preempt(victim, output)
            if victim is request:
                return False
        request.block_table += self.blocks.allocate(missing)
        return True

    def _compute_prompts(self, output: SchedulerOutput, budget: int, room: int) -> int:
        """Go on with prompts and begin others, in turn, ``budget`` tokens in all; returns how many it took.

        A few more, but not beyond ``room``, where a prompt's end would be left for a step of its own.
        """
        may_begin, left = True, budget
        while left > 0:
            request = self._next_prompt(output, may_begin)
            if request is None:
                break
            if request.status is not RequestStatus.RUNNING and not self._begin(request, output):
                may_begin = False  # it keeps its turn: letting smaller ones pass would starve it
                continue
            if not self._grow(request, output):
                break
            pending = request.num_pending_tokens
            is_near = pending <= min(left + left // _CRUMB, room - (budget - left))
            count = pending if self.config.whole_prompts or is_near else min(pending, left)
            self._compute(request, count, output)
            left -= count
        return budget - left

    def _next_prompt(self, output: SchedulerOutput, may_begin: bool) -> Request | None:
        """Whose prompt is next, of those that are begun and, if one ``may_begin``, those that wait."""
        left_out = [request for request in self.running if request.request_id not in output.num_tokens]
        begun = min((r for r in left_out if r.num_pending_tokens > 1), key=self._turn, default=None)
        if not may_begin:
            return begun
        if (overdue := self.waiting.overdue(left_out, self._clock())) is not None:
            return overdue
        waiting = self.waiting.next()
        if waiting is None or begun is None:
            return begun or waiting
        return waiting if self._precedes(waiting, begun) else begun

    def _precedes(self, waiting: Request, begun: Request) -> bool:
        """What is begun keeps its turn if it is all that its flow runs, and is no longer: by turns all end late."""
        flow = self.waiting.flow(begun)
        if self.waiting.num_running(flow) == 1 and begun.num_pending_tokens <= waiting.num_pending_tokens:
            return self.waiting.flow(waiting).priority > flow.priority
        return self._turn(waiting) < self._turn(begun)

    def _turn(self, request: Request) -> tuple[Rank, int]:
        return self.waiting.rank(self.waiting.flow(request)), request.arrival

    def _begin(self, request: Request, output: SchedulerOutput) -> bool:
        """Let a waiting request in, at the cost of others where those have far more; False when there is no room."""
        while len(self.running) >= self.config.max_num_seqs or not self._place(request, output):
            victim = who_yields(request, self.running, self.waiting)
            if victim is None:
                if not self.running:
                    output.exhausted.append(request)
                return False
            self._preempt(victim, output)
        self._start(request)
        return True

    def _cut_drafts(self, output: SchedulerOutput) -> None:
        """Give drafts what the step has left of its tokens, and blocks that are free: nobody gives way to them."""
        budget = max(0, self.config.max_num_batched_tokens - sum(output.num_tokens.values()))
        for request in self.running:
            if request.request_id not in output.num_tokens:
                request.draft = []
            if not request.draft:
                continue
            num_blocks = len(request.block_table) + self.blocks.num_free
            room = min(budget, num_blocks * self.blocks.block_size - len(request.token_ids))
            del request.draft[room:]
            missing = self.blocks.blocks_for(request.num_tokens_with_draft) - len(request.block_table)
            request.block_table += self.blocks.allocate(max(0, missing))
            budget -= len(request.draft)

    def _forget_draft(self, request: Request) -> None:
        """Free the blocks that only refused tokens needed."""
        if request.draft:
            request.draft = []
            needed = self.blocks.blocks_for(len(request.token_ids))
            self.blocks.release(request.block_table[needed:])
            del request.block_table[needed:]

    def _place(self, request: Request, output: SchedulerOutput) -> bool:
        """Build a request's block table: the adapter's prefix, cached blocks, new blocks. False if they are short."""
        slot = self.slots[request.adapter]
        head = slot.prefix_blocks[: slot.num_virtual_tokens // self.blocks.block_size]
        cached = self._lookup(request, len(head))
        self.blocks.acquire(cached)
        needed = self.blocks.blocks_for(len(request.token_ids)) - len(head) - len(cached)
        if self._lacks(needed):
            self.blocks.release(cached)
            return False
        self.blocks.acquire(head)
        request.block_table = [*head, *cached, *self.blocks.allocate(needed)]
        request.num_published_blocks = len(head) + len(cached)
        request.num_computed_tokens = request.num_published_blocks * self.blocks.block_size
        if slot.prefix_blocks and not cached:
            request.num_computed_tokens = slot.num_virtual_tokens
            if len(head) < len(slot.prefix_blocks):  # the last prefix block is shared with the prompt's beginning
                output.copies[request.request_id] = (slot.prefix_blocks[-1], request.block_table[len(head)])
        return True

    def _start(self, request: Request) -> None:
        """Move a placed request to the running ones. What is cached the first time need not be paid for."""
        self.waiting.start(request)
        if request.status is RequestStatus.WAITING:
            request.num_cached_tokens = max(0, request.num_computed_tokens - request.num_virtual_tokens)
            self.num_queried_tokens += len(request.prompt_ids)
            self.num_cached_tokens += request.num_cached_tokens
            request.num_charged_tokens = request.num_computed_tokens
        request.status = RequestStatus.RUNNING
        self.running.append(request)

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.waiting.stop(request)
        self.blocks.release(request.block_table)
        request.forget_computed()

    def _preempt(self, request: Request, output: SchedulerOutput | None = None) -> None:
        request.num_kept_tokens = request.num_output_tokens
        self._stop(request)
        request.status = RequestStatus.PREEMPTED
        self.waiting.push(request)
        self.num_preemptions += 1
        request.num_preemptions += 1
        if output is not None:
            output.preempted.append(request.request_id)
            output.num_tokens.pop(request.request_id, None)
            output.copies.pop(request.request_id, None)

    def _lookup(self, request: Request, skip: int) -> list[int]:
        """Cached blocks after the first ``skip``. The last token is always computed: its logits are wanted."""
        if not self.config.prefix_caching or request.reads_whole_prompt:
            return []
        self._extend_hashes(request)
        return self.blocks.lookup(request.block_hashes[skip : (len(request.token_ids) - 1) // self.blocks.block_size])

    def _extend_hashes(self, request: Request) -> None:
        if len(request.block_hashes) == len(request.token_ids) // self.blocks.block_size:
            return
        fingerprint, salt = self.config.base_fingerprint, request.cache_salt
        content = request.adapter.digest if request.adapter else ""
        switch = None
        if request.activate_from:  # the base's blocks up to there, which the base and others share
            switch = request.activate_from, hash_seed(content, str(request.activate_from))
            content = ""
        seed = hash_seed(fingerprint, content, salt)
        extend_hashes(request.block_hashes, request.token_ids, self.blocks.block_size, seed, switch)

    # ---- integrity ----

    def _remove_blocked(self, request: Request) -> None:
        self.blocked[request.awaits].remove(request)
        if not self.blocked[request.awaits]:
            del self.blocked[request.awaits]

    def _all_blocked(self) -> Iterator[Request]:
        for requests in self.blocked.values():
            yield from requests

    def _places(self) -> list[tuple[RequestStatus, list[Request]]]:
        return [
            (RequestStatus.RUNNING, self.running),
            (RequestStatus.WAITING, [r for r in self.waiting if r.status is not RequestStatus.PREEMPTED]),
            (RequestStatus.BLOCKED, list(self._all_blocked())),
        ]

    def _check_request(self, request: Request) -> None:
        assert (request.awaits is None) == (request.status is not RequestStatus.BLOCKED)
        assert request.adapter in self.slots or request.awaits == request.adapter
        if request.status is not RequestStatus.RUNNING:
            assert not request.block_table, "only running requests hold blocks"
            assert request.num_computed_tokens == 0
            assert not request.draft
        else:
            assert request.num_computed_tokens <= len(request.token_ids)
            assert self.blocks.blocks_for(request.num_computed_tokens) <= len(request.block_table)
            assert len(request.block_table) <= self.blocks.blocks_for(request.num_tokens_with_draft)
