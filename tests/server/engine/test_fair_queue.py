"""Virtual token counters."""

from __future__ import annotations

from server.adapter_key import AdapterKey
from server.engine import fair_queue
from server.engine.fair_queue import FairQueue
from server.engine.request import Request
from tests.server.engine.requests import make_request


def request(name: str, arrival: int, tokens: int = 10, version: int = 1) -> Request:
    adapter = AdapterKey(name, version, "") if name else None
    return make_request(f"{name}{arrival}", [1] * tokens, adapter, arrival=arrival)


def take(queue: FairQueue) -> Request:
    """Let the next request in, as the scheduler does."""
    chosen = queue.peek()
    assert chosen is not None
    queue.remove(chosen)
    queue.charge_prompt(chosen, chosen.num_pending_tokens)
    return chosen


def test_first_come_first_served_within_an_adapter() -> None:
    queue = FairQueue()
    for arrival in range(3):
        queue.push(request("a", arrival, version=arrival))
    assert [take(queue).arrival for _ in range(3)] == [0, 1, 2]
    assert queue.peek() is None
    assert len(queue) == 0


def test_a_flood_does_not_delay_others() -> None:
    queue = FairQueue()
    for arrival in range(100):
        queue.push(request("flood", arrival))
    queue.push(request("", 100))
    queue.push(request("", 101))
    order = [account(take(queue)) for _ in range(6)]
    assert order == ["flood", "", "flood", "", "flood", "flood"]


def account(taken: Request) -> str:
    return fair_queue.account(taken)


def test_service_is_balanced_by_tokens_not_requests() -> None:
    queue = FairQueue()
    for arrival in range(60):
        queue.push(request("long", 2 * arrival, tokens=30))
        queue.push(request("short", 2 * arrival + 1, tokens=10))
    taken = [account(take(queue)) for _ in range(40)]
    assert taken.count("short") == 30


def test_output_tokens_count_double() -> None:
    queue = FairQueue()
    served = request("a", 0)
    for _ in range(5):
        queue.charge_output(served)
    assert queue.served("a") == 10


def test_a_pause_gives_no_credit() -> None:
    queue = FairQueue()
    queue.push(request("busy", 0))
    queue.charge_prompt(request("busy", 0), 10_000)
    queue.push(request("back", 1))
    assert queue.served("back") == queue.served("busy") == 10_000


def test_after_an_empty_queue_the_last_to_leave_sets_the_level() -> None:
    queue = FairQueue()
    queue.push(request("a", 0))
    take(queue)
    queue.push(request("b", 1))
    assert queue.served("b") == queue.served("a") == 10


def test_debt_is_not_forgotten() -> None:
    queue = FairQueue()
    queue.charge_prompt(request("greedy", 0), 500)
    queue.push(request("other", 1))
    queue.push(request("greedy", 2))
    assert queue.served("greedy") == 500
    assert account(take(queue)) == "other"


def test_counters_of_idle_names_are_bounded() -> None:
    queue = FairQueue()
    for arrival in range(fair_queue.MAX_COUNTERS + 10):
        queue.push(request(f"name{arrival}", arrival))
        take(queue)
    assert sum(queue.served(f"name{i}") > 0 for i in range(fair_queue.MAX_COUNTERS + 10)) <= fair_queue.MAX_COUNTERS
