"""Scheduling without a model: budgets, order, preemption, caching, and random traffic that keeps every invariant."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.adapter_key import AdapterKey
from server.engine.request import RequestStatus
from server.engine.scheduler import AdapterSlot, Loan
from tests.server.engine.requests import make_request
from tests.server.engine.scheduling import add, finish_step, make_scheduler, step

KEY = AdapterKey("a", 1, "digest")


def test_prompts_are_chunked_to_the_budget() -> None:
    scheduler = make_scheduler(tokens=10)
    add(scheduler, "a", 7)
    add(scheduler, "b", 12)
    assert step(scheduler).num_tokens == {"a": 7, "b": 3}
    assert step(scheduler).num_tokens == {"a": 1, "b": 9}
    assert step(scheduler).num_tokens == {"a": 1, "b": 1}


def test_prompts_take_their_part_of_a_step_while_others_generate() -> None:
    scheduler = make_scheduler(tokens=20)
    add(scheduler, "a", 10)
    assert step(scheduler, 3).num_tokens == {"a": 10}, "nobody waits for it"
    add(scheduler, "b", 7)
    add(scheduler, "c", 4)
    assert step(scheduler, 3).num_tokens == {"a": 1, "b": 3}
    assert step(scheduler, 3).num_tokens == {"a": 1, "b": 3}
    assert step(scheduler, 3).num_tokens == {"a": 1, "b": 1, "c": 3}, "the last token of a prompt is no prompt's part"
    assert step(scheduler).num_tokens == {"a": 1, "b": 1, "c": 1}


def test_a_prompt_computed_whole_is_not_cut_for_others() -> None:
    scheduler = make_scheduler(tokens=20, whole_prompts=True)
    add(scheduler, "a", 2)
    step(scheduler, 3)
    add(scheduler, "b", 9)
    assert step(scheduler, 3).num_tokens == {"a": 1, "b": 9}


def test_a_long_prompt_does_not_hold_up_generation() -> None:
    scheduler = make_scheduler(num_blocks=64, tokens=8)
    add(scheduler, "generates", 3)
    step(scheduler)
    add(scheduler, "long", 40)
    for _ in range(5):
        assert step(scheduler).num_tokens == {"generates": 1, "long": 7}


def test_sequences_are_bounded() -> None:
    scheduler = make_scheduler(seqs=2)
    for name in "abc":
        add(scheduler, name, 2)
    assert set(step(scheduler).num_tokens) == {"a", "b"}
    assert scheduler.num_waiting == 1


def test_streams_are_those_who_will_generate_side_by_side() -> None:
    scheduler = make_scheduler(num_blocks=8, seqs=4, prefix_caching=False)
    assert scheduler.num_streams == 0
    add(scheduler, "runs", 4)
    step(scheduler)
    add(scheduler, "read only", 4, max_tokens=1)
    add(scheduler, "fits", 4)
    assert scheduler.num_streams == 2
    add(scheduler, "too long", 24)
    add(scheduler, "behind it", 4)
    assert scheduler.num_streams == 2, "what has no room yet does not generate soon"


def test_as_many_streams_as_there_are_places() -> None:
    scheduler = make_scheduler(seqs=2)
    for name in "abc":
        add(scheduler, name, 2)
    assert scheduler.num_streams == 2


def test_a_request_that_does_not_fit_keeps_its_turn() -> None:
    scheduler = make_scheduler(num_blocks=4, prefix_caching=False)
    add(scheduler, "runs", 8, max_tokens=3)
    add(scheduler, "big", 12)
    add(scheduler, "small", 1)
    assert set(step(scheduler).num_tokens) == {"runs"}
    assert set(step(scheduler).num_tokens) == {"runs"}
    assert set(step(scheduler).num_tokens) == {"runs"}
    assert set(step(scheduler).num_tokens) == {"big", "small"}


def test_the_last_to_arrive_is_preempted_and_resumes_first() -> None:
    scheduler = make_scheduler(num_blocks=4, prefix_caching=False)
    first, second = add(scheduler, "first", 7, max_tokens=6), add(scheduler, "second", 7, max_tokens=6)
    step(scheduler)
    step(scheduler)
    add(scheduler, "third", 1)
    output = step(scheduler)
    assert output.preempted == ["second"]
    assert output.num_tokens == {"first": 1}
    assert second.status is RequestStatus.PREEMPTED
    assert len(second.token_ids) == 9, "its outputs stay"
    while first.request_id in scheduler.requests:
        assert "third" not in step(scheduler).num_tokens, "nobody new comes in before it"
    assert step(scheduler).num_tokens == {"second": 9, "third": 1}


def test_preempted_requests_resume_in_the_order_of_arrival() -> None:
    scheduler = make_scheduler(num_blocks=8)
    for name in "abcd":
        add(scheduler, name, 8)
    step(scheduler)
    prefix = scheduler.reserve(4)
    assert prefix is not None
    assert [request.request_id for request in scheduler.preempted] == ["c", "d"]
    assert scheduler.num_preemptions == 2
    scheduler.add_adapter(KEY, AdapterSlot(16, prefix))
    scheduler.check_integrity()


def test_a_request_preempts_itself_when_it_is_the_last() -> None:
    scheduler = make_scheduler(num_blocks=3, prefix_caching=False)
    add(scheduler, "first", 5, max_tokens=3)
    add(scheduler, "last", 4)
    assert step(scheduler).num_tokens == {"first": 5, "last": 4}
    output = step(scheduler)
    assert (output.preempted, output.num_tokens) == (["last"], {"first": 1})


@pytest.mark.parametrize(("prompt", "steps"), [(17, 0), (15, 2)])
def test_alone_and_out_of_blocks_is_exhausted(prompt: int, steps: int) -> None:
    scheduler = make_scheduler(num_blocks=4)
    request = add(scheduler, "r", prompt)
    for _ in range(steps):
        assert step(scheduler).exhausted == []
    assert scheduler.schedule().exhausted == [request]
    scheduler.remove(request)
    scheduler.check_integrity()


def test_cached_blocks_are_not_computed_again() -> None:
    scheduler = make_scheduler()
    first = add(scheduler, "first", list(range(10)), max_tokens=1)
    step(scheduler)
    assert first.status is RequestStatus.FINISHED
    second = add(scheduler, "second", list(range(10)))
    assert scheduler.schedule().num_tokens == {"second": 2}
    assert second.num_cached_tokens == 8
    scheduler.check_integrity()


def test_the_last_token_is_always_computed() -> None:
    scheduler = make_scheduler()
    add(scheduler, "first", list(range(8)), max_tokens=1)
    step(scheduler)
    add(scheduler, "second", list(range(8)))
    assert scheduler.schedule().num_tokens == {"second": 4}


def test_running_requests_share_cached_blocks() -> None:
    scheduler = make_scheduler(num_blocks=4)
    requests = [add(scheduler, "0", list(range(9)))]
    step(scheduler)
    requests.append(add(scheduler, "1", list(range(9))))
    step(scheduler)
    assert requests[0].block_table[:2] == requests[1].block_table[:2]
    assert scheduler.blocks.num_free == 0


def test_prompt_logprobs_skip_the_cache() -> None:
    scheduler = make_scheduler()
    add(scheduler, "first", list(range(10)), max_tokens=1)
    step(scheduler)
    add(scheduler, "second", list(range(10)), prompt_logprobs=0)
    assert scheduler.schedule().num_tokens == {"second": 10}


def test_blocked_requests_wait_aside() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "blocked", 3, KEY)
    add(scheduler, "free", 3)
    assert set(step(scheduler).num_tokens) == {"free"}
    assert request.status is RequestStatus.BLOCKED
    scheduler.add_adapter(KEY, AdapterSlot())
    for waiting in scheduler.pop_blocked(KEY):
        scheduler.add(waiting)
    assert set(step(scheduler).num_tokens) == {"free", "blocked"}


def test_only_blocked_requests_are_no_work() -> None:
    scheduler = make_scheduler()
    request = add(scheduler, "blocked", 3, KEY)
    assert not scheduler.has_work
    scheduler.remove(request)
    assert scheduler.blocked == {}
    scheduler.check_integrity()


@pytest.mark.parametrize(("virtual", "copied"), [(4, False), (6, True), (3, True)])
def test_prefix_blocks_head_the_table(virtual: int, copied: bool) -> None:
    scheduler = make_scheduler()
    prefix = scheduler.reserve(scheduler.blocks.blocks_for(virtual))
    assert prefix is not None
    scheduler.add_adapter(KEY, AdapterSlot(virtual, prefix))
    request = add(scheduler, "r", 5, KEY)
    output = scheduler.schedule()
    assert output.num_tokens == {"r": 5}
    full = virtual // 4
    assert request.block_table[:full] == prefix[:full]
    assert not set(request.block_table[full:]) & set(prefix)
    assert output.copies == ({"r": (prefix[-1], request.block_table[full])} if copied else {})
    finish_step(scheduler, output)
    again = add(scheduler, "again", request.prompt_ids, KEY)
    output = scheduler.schedule()
    cached = (virtual + 4) // 4 * 4 - virtual
    assert again.num_cached_tokens == cached
    assert output.num_tokens["again"] == 5 - cached
    assert output.copies == {}, "a cached block has the prefix's end in it already"
    for ended in (request, again):
        scheduler.remove(ended)
    scheduler.remove_adapter(KEY)
    scheduler.check_integrity()
    assert scheduler.blocks.num_free == 16


def test_prefixes_hold_half_of_the_blocks_at_most() -> None:
    scheduler = make_scheduler(num_blocks=8)
    assert scheduler.reserve(5) is None
    prefix = scheduler.reserve(3)
    assert prefix is not None
    scheduler.add_adapter(KEY, AdapterSlot(12, prefix))
    assert scheduler.reserve(2) is None


def test_adapters_get_the_same_service() -> None:
    scheduler = make_scheduler(num_blocks=64, seqs=1, prefix_caching=False)
    other = AdapterKey("b", 1, "")
    for key in (KEY, other):
        scheduler.add_adapter(key, AdapterSlot())
    for i in range(30):
        add(scheduler, f"a{i}", 4, KEY, max_tokens=2)
    for i in range(3):
        add(scheduler, f"b{i}", 4, other, max_tokens=2)
    order: list[str] = []
    while scheduler.has_work and len(order) < 12:
        order += [name[0] for name in step(scheduler).num_tokens]
    assert order.count("b") == 6, "all of b ran while a had dozens before it"


def test_requests_have_lent_blocks_back_when_they_need_them() -> None:
    scheduler = make_scheduler(8)
    called: list[Loan] = []

    def call_in() -> None:
        assert loan is not None
        called.append(loan)
        scheduler.take_back(loan)

    add(scheduler, "a", 14, max_tokens=4)
    step(scheduler)
    loan = scheduler.lend(3, call_in)
    assert loan is not None
    step(scheduler)
    assert not called, "the request has room"
    add(scheduler, "b", 8)
    output = step(scheduler)
    assert called == [loan]
    assert output.num_tokens.keys() == {"a", "b"}
    assert not output.preempted
    assert scheduler.lend(9, call_in) is None


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, aborts, steps, and adapters coming and going on few blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(num_blocks=12, block_size=2, tokens=9, seqs=4)
        self.keys = [AdapterKey(name, 1, name) for name in ("lora", "prefix", "prompt")]
        self.loans: list[Loan] = []
        self.arrivals = 0
        self.submitted: set[str] = set()
        self.ended: list[str] = []
        self.budget = 9

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        max_tokens=st.integers(1, 12),
        which=st.sampled_from([None, 0, 1, 2]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def arrive(self, prompt: list[int], max_tokens: int, which: int | None, prompt_logprobs: int | None) -> None:
        self.arrivals += 1
        key = None if which is None else self.keys[which]
        slot = self.scheduler.slots.get(key)
        request = make_request(
            f"r{self.arrivals}", prompt, key, arrival=self.arrivals, max_tokens=max_tokens,
            num_virtual_tokens=slot.num_virtual_tokens if slot else 0, prompt_logprobs=prompt_logprobs,
        )  # fmt: skip
        if slot is None:
            request.token_ids = []  # attached when the adapter comes
        self.submitted.add(request.request_id)
        self.scheduler.add(request)

    @rule(count=st.integers(1, 12))
    def lend(self, count: int) -> None:
        def call_in() -> None:
            assert loan is not None
            self.scheduler.take_back(loan)
            self.loans.remove(loan)

        loan = self.scheduler.lend(count, call_in)
        if loan is not None:
            self.loans.append(loan)

    @precondition(lambda self: self.loans)
    @rule()
    def take_back(self) -> None:
        self.scheduler.take_back(self.loans.pop(0))

    @rule(drafts=st.lists(st.integers(0, 7), max_size=4), accepted=st.integers(0, 7))
    def run_step(self, drafts: list[int] | None = None, accepted: int = 0) -> None:
        for request, count in zip(self.scheduler.running, drafts or (), strict=False):
            request.draft = [accepted % 2] * min(count, request.draft_room)
        output = self.scheduler.schedule()
        self.scheduler.check_integrity()
        drafted = sum(len(request.draft) for request in self.scheduler.requests.values())
        assert sum(output.num_tokens.values()) + drafted <= self.budget
        assert all(r in output.num_tokens for r, request in self.scheduler.requests.items() if request.draft)
        assert len(self.scheduler.running) <= 4
        assert all(0 < n <= self.scheduler.requests[r].num_pending_tokens for r, n in output.num_tokens.items())
        assert all(self.scheduler.requests[r].status is RequestStatus.RUNNING for r in output.num_tokens)
        assert all(r in output.num_tokens for r in output.copies)
        assert output.num_tokens or output.exhausted or not self.scheduler.has_work, "there is always progress"
        self.ended += [request.request_id for request in finish_step(self.scheduler, output, accepted)]

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = self.scheduler.requests[data.draw(st.sampled_from(sorted(self.scheduler.requests)))]
        self.scheduler.remove(request)
        self.ended.append(request.request_id)

    @rule(which=st.integers(0, 2), virtual=st.integers(1, 5))
    def load(self, which: int, virtual: int) -> None:
        key = self.keys[which]
        if key in self.scheduler.slots:
            return
        blocks = self.scheduler.reserve(self.scheduler.blocks.blocks_for(virtual)) if key.name == "prefix" else []
        assert blocks is not None, "one prefix of five tokens is less than half of the blocks"
        slot = AdapterSlot(0 if key.name == "lora" else virtual, blocks)
        self.scheduler.add_adapter(key, slot)
        for request in self.scheduler.pop_blocked(key):
            request.attach(slot.num_virtual_tokens, 1000)
            self.scheduler.add(request)

    @rule(which=st.integers(0, 2))
    def unload(self, which: int) -> None:
        key = self.keys[which]
        if key in self.scheduler.slots and all(r.adapter != key for r in self.scheduler.requests.values()):
            self.scheduler.remove_adapter(key)

    @invariant()
    def is_sound(self) -> None:
        self.scheduler.check_integrity()
        assert len(self.ended) == len(set(self.ended))
        assert set(self.ended) | set(self.scheduler.requests) == self.submitted
        flow_of = self.scheduler.waiting.flow
        begun = [flow_of(r) for r in self.scheduler.running if r.num_pending_tokens > 1 and not r.is_overdue]
        assert len(begun) == len(set(begun)), "one prompt of a flow at a time"
        for request in self.scheduler.running:
            if request.adapter == self.keys[1]:
                slot = self.scheduler.slots[request.adapter]
                full = slot.num_virtual_tokens // 2
                assert request.block_table[:full] == slot.prefix_blocks[:full]
                assert request.num_computed_tokens >= slot.num_virtual_tokens

    def teardown(self) -> None:
        """Everything that is not blocked comes to its end."""
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.run_step()
        assert not self.scheduler.has_work
        while self.loans:
            self.scheduler.take_back(self.loans.pop())
        for request in list(self.scheduler.requests.values()):
            self.scheduler.remove(request)
        prefixes = sum(len(slot.prefix_blocks) for slot in self.scheduler.slots.values())
        assert self.scheduler.blocks.num_free == 12 - prefixes


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
