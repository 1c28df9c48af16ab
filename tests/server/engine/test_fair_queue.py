"""Virtual token counters."""

from __future__ import annotations

from typing import Any

import pytest

from server.adapter_key import AdapterKey
from server.engine import fair_queue
from server.engine.fair_queue import STARVED_EVERY, STARVED_SECONDS, Accounts, FairQueue
from server.engine.request import Request
from tests.server.engine.requests import make_request


def request(name: str, arrival: int, tokens: int = 10, version: int = 1, **params: Any) -> Request:
    adapter = AdapterKey(name, version, "") if name else None
    return make_request(f"{name}{arrival}", [1] * tokens, adapter, arrival=arrival, **params)


def add(queue: FairQueue, added: Request) -> Request:
    queue.enter(added)
    queue.push(added)
    return added


def start_next(queue: FairQueue, now: float = 0.0) -> Request:
    """Let the next request in, as the scheduler does."""
    chosen = queue.overdue([], now) or queue.next()
    assert chosen is not None
    queue.start(chosen)
    return chosen


def take(queue: FairQueue, *, now: float = 0.0) -> Request:
    """Let the next request in; it ends at once."""
    chosen = start_next(queue, now)
    queue.charge_prompt(chosen, chosen.num_pending_tokens)
    queue.stop(chosen)
    queue.leave(chosen)
    return chosen


def name_of(taken: Request) -> str:
    return taken.adapter.name if taken.adapter else ""


def take_names(queue: FairQueue, count: int) -> list[str]:
    return [name_of(take(queue)) for _ in range(count)]


def test_first_come_first_served_within_an_adapter() -> None:
    queue = FairQueue()
    for arrival in range(3):
        add(queue, request("a", arrival, version=arrival))
    assert [take(queue).arrival for _ in range(3)] == [0, 1, 2]
    assert queue.next() is None
    assert len(queue) == 0


def test_who_was_let_in_before_waits_again_before_others() -> None:
    queue = FairQueue()
    first = add(queue, request("a", 0))
    queue.start(first)
    add(queue, request("a", 1))
    queue.stop(first)
    queue.push(first)
    assert [r.arrival for r in queue] == [0, 1]


def test_a_flood_does_not_delay_others() -> None:
    queue = FairQueue()
    for arrival in range(100):
        add(queue, request("flood", arrival))
    add(queue, request("", 100))
    add(queue, request("", 101))
    assert take_names(queue, 6) == ["flood", "", "flood", "", "flood", "flood"]


def test_first_come_first_served_is_a_choice() -> None:
    queue = FairQueue(fair=False)
    for arrival in range(10):
        add(queue, request("flood", arrival))
    add(queue, request("", 10, priority=5))
    assert take_names(queue, 11) == ["flood"] * 10 + [""]


def test_service_is_balanced_by_tokens_not_requests() -> None:
    queue = FairQueue()
    for arrival in range(60):
        add(queue, request("long", 2 * arrival, tokens=30))
        add(queue, request("short", 2 * arrival + 1, tokens=10))
    assert take_names(queue, 40).count("short") == 30


def test_service_is_shared_by_weight() -> None:
    queue = FairQueue()
    for arrival in range(100):
        add(queue, request("heavy", 2 * arrival, weight=3.0))
        add(queue, request("light", 2 * arrival + 1, weight=1.0))
    assert take_names(queue, 80).count("heavy") == 60


def test_a_key_gets_no_more_by_many_adapters() -> None:
    queue = FairQueue()
    for arrival in range(200):
        add(queue, request(f"a{arrival % 20}", 2 * arrival, tenant="many"))
        add(queue, request("one", 2 * arrival + 1, tenant="single"))
    assert take_names(queue, 100).count("one") == 50


def test_an_adapter_gets_no_more_by_many_keys() -> None:
    queue = FairQueue()
    for arrival in range(200):
        add(queue, request("popular", 2 * arrival, tenant=f"k{arrival % 20}"))
        add(queue, request("other", 2 * arrival + 1, tenant="single"))
    assert take_names(queue, 100).count("other") == 50


def test_keys_share_an_adapter() -> None:
    queue = FairQueue()
    for arrival in range(100):
        add(queue, request("a", arrival, tenant="flood"))
    for arrival in range(100, 110):
        add(queue, request("a", arrival, tenant="quiet"))
    assert [take(queue).tenant for _ in range(20)].count("quiet") == 10


def test_a_higher_priority_goes_first_and_gives_its_accounts_no_debt_below() -> None:
    queue = FairQueue()
    for arrival in range(3):
        add(queue, request("low", arrival))
    for arrival in range(3, 6):
        add(queue, request("high", arrival, priority=1))
    assert take_names(queue, 6) == ["high"] * 3 + ["low"] * 3


def test_who_starves_has_every_eighth_start() -> None:
    queue = FairQueue()
    for arrival in range(100):
        add(queue, request("high", arrival, priority=1))
        add(queue, request("low", 100 + arrival))
    soon = [name_of(take(queue, now=STARVED_SECONDS - 1)) for _ in range(STARVED_EVERY)]
    late = [take(queue, now=STARVED_SECONDS) for _ in range(3 * STARVED_EVERY)]
    assert soon == ["high"] * STARVED_EVERY
    assert [r.is_overdue for r in late] == [*[False] * (STARVED_EVERY - 1), True] * 3
    # None of either runs here, and those of "high" are older: so the starved are they, and in the end the others.
    assert [name_of(r) for r in late] == ["high"] * len(late)


def test_who_runs_does_not_starve() -> None:
    queue = FairQueue()
    for arrival in range(20):
        add(queue, request("high", arrival, priority=1))
    add(queue, request("low", 20))
    names = [name_of(start_next(queue, STARVED_SECONDS)) for _ in range(STARVED_EVERY)]
    assert names == ["high"] * (STARVED_EVERY - 1) + ["low"]


@pytest.mark.parametrize(
    ("computed", "kept_tokens", "priority", "starves"),
    [(1, None, 1, True), (1, None, 0, False), (12, None, 1, False), (12, 2, 0, True), (12, 1, 0, False)],
    ids=["prompt behind a higher one", "prompt in turn", "row", "row after a loss", "row after a loss and a token"],
)
def test_who_runs_and_gets_nowhere_has_the_eighth_turn(
    computed: int, kept_tokens: int | None, priority: int, starves: bool
) -> None:
    queue = FairQueue()
    stuck = add(queue, request("stuck", 0, tokens=11, outputs=(1, 2)))
    queue.start(stuck)
    stuck.num_computed_tokens, stuck.num_kept_tokens = computed, kept_tokens
    for arrival in range(1, STARVED_EVERY):
        others = add(queue, request("others", arrival, priority=priority))
        if arrival < STARVED_EVERY - 1:
            queue.start(others)
    assert queue.overdue([stuck], STARVED_SECONDS - 1) is None
    assert queue.overdue([stuck], STARVED_SECONDS) is (stuck if starves else None)
    assert stuck.is_overdue == starves
    assert queue.overdue([stuck], STARVED_SECONDS) is None, "that was the turn"


def test_output_tokens_count_double() -> None:
    queue, served = FairQueue(), request("a", 0)
    add(queue, served)
    add(queue, request("b", 1))
    for _ in range(5):
        queue.charge_output(served)
    assert queue.rank(queue.flow(served))[1] == 10


def test_a_pause_gives_no_credit() -> None:
    accounts = Accounts()
    accounts.enter("busy")
    accounts.charge("busy", 10_000)
    accounts.enter("back")
    assert accounts.served("back") == accounts.served("busy") == 10_000
    accounts.leave("back")
    accounts.charge("busy", 5)
    accounts.enter("back")
    accounts.rebase()
    assert accounts.excess("back") == accounts.excess("busy") == 0


def test_who_is_served_less_keeps_that_while_it_has_requests() -> None:
    accounts = Accounts()
    for name in ("busy", "quiet", "quiet"):
        accounts.enter(name)
    accounts.charge("busy", 100)
    accounts.leave("quiet")
    accounts.enter("quiet")
    accounts.rebase()
    assert (accounts.excess("busy"), accounts.excess("quiet")) == (100, 0)


def test_after_an_empty_queue_the_last_to_leave_sets_the_level() -> None:
    accounts = Accounts()
    accounts.enter("a")
    accounts.charge("a", 10)
    accounts.leave("a")
    accounts.enter("b")
    assert accounts.served("b") == accounts.served("a") == 10


def test_debt_is_not_forgotten() -> None:
    accounts = Accounts()
    accounts.enter("other")
    accounts.enter("greedy")
    accounts.charge("greedy", 500)
    accounts.leave("greedy")
    accounts.enter("greedy")
    assert accounts.excess("greedy") == 500


def test_counters_of_idle_names_are_bounded() -> None:
    accounts = Accounts()
    names = [f"name{i}" for i in range(fair_queue.MAX_COUNTERS + 10)]
    for name in names:
        accounts.enter(name)
        accounts.charge(name, 1)
        accounts.leave(name)
    assert sum(accounts.served(name) > 0 for name in names) <= fair_queue.MAX_COUNTERS


def test_a_combination_is_on_the_accounts_of_all_its_members() -> None:
    """Nobody gets ahead by combining one adapter with many, nor at the cost of those who ask for a member alone."""
    queue = FairQueue()
    for arrival in range(20):
        add(queue, request(f"a+{'bcde'[arrival % 4]}", arrival))
    add(queue, request("other", 20))
    add(queue, request("b", 21))
    assert take_names(queue, 2) == ["a+b", "other"]
    for _ in range(20):
        take(queue)
    assert queue.next() is None
