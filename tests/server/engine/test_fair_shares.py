"""Turns among those who run: a scheduler without a model shared by flows, over many steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.adapter_key import AdapterKey
from server.engine.fair_queue import STARVED_EVERY, STARVED_SECONDS
from server.engine.fair_shares import LET_PASS, LINGER_SECONDS, MARGIN, PAUSED_STEPS
from server.engine.request import Request, RequestStatus
from server.engine.scheduler import AdapterSlot
from tests.server.engine.requests import make_request
from tests.server.engine.scheduling import finish_step, make_scheduler


@dataclass(frozen=True)
class Client:
    """Whoever keeps ``streams`` requests going."""

    name: str
    streams: int
    adapter: str = ""
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    prompt: int = 3
    outputs: int = 8


class Shared:
    """A scheduler and its clients; ``served`` counts the tokens of each, ``steps`` of how many each had some."""

    def __init__(
        self,
        *clients: Client,
        fixed_rows: float = float("inf"),
        token_rows: float = 1.0,
        step_seconds: float = 0.0,
        **config: int,
    ) -> None:
        self.now = 0.0
        self.scheduler = make_scheduler(
            clock=lambda: self.now, **{"num_blocks": 256, "prefix_caching": False, **config}
        )
        self.clients = {client.name: client for client in clients}
        self.served: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()
        self.waits: dict[str, list[int]] = {name: [] for name in self.clients}
        self.rows: list[Counter[str]] = []
        self._fixed_rows, self._token_rows, self._seconds = fixed_rows, token_rows, step_seconds
        self._numbers = count()
        self._begun: dict[str, int] = {}

    def ask(self, client: Client) -> Request:
        number = next(self._numbers)
        key = AdapterKey(client.adapter, 1, client.adapter) if client.adapter else None
        if key is not None and key not in self.scheduler.slots:
            self.scheduler.add_adapter(key, AdapterSlot())
        made = make_request(
            f"{client.name}/{number}", [number % 97 + 1] * client.prompt, key, arrival=number, weight=client.weight,
            tenant=client.tenant, priority=client.priority, max_tokens=client.outputs,
        )  # fmt: skip
        made.arrived_at = self.now
        self._begun[made.request_id] = len(self.rows)
        self.scheduler.add(made)
        return made

    def step(self) -> None:
        live = Counter(request_id.partition("/")[0] for request_id in self.scheduler.requests)
        for name, client in self.clients.items():
            for _ in range(client.streams - live[name]):
                self.ask(client)
        output = self.scheduler.schedule(fixed_rows=self._fixed_rows, token_rows=self._token_rows)
        assert output.num_tokens, "there is always progress"
        rows: Counter[str] = Counter()
        for request_id, tokens in output.num_tokens.items():
            request, name = self.scheduler.requests[request_id], request_id.partition("/")[0]
            done = request.num_pending_tokens == tokens
            rows[name] += tokens
            self.outputs[name] += done
        self.rows.append(rows)
        for request in finish_step(self.scheduler, output):
            name = request.request_id.partition("/")[0]
            self.served[name] += len(request.prompt_ids) + 2 * request.num_output_tokens
            self.waits.setdefault(name, []).append(len(self.rows) - self._begun[request.request_id])
        self.now += self._seconds

    def run(self, steps: int) -> Shared:
        for _ in range(steps):
            self.step()
        return self


def shares(served: Mapping[str, float]) -> dict[str, float]:
    return {name: tokens / sum(served.values()) for name, tokens in served.items()}


# ---- shares ----


@settings(max_examples=10)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    sizes=st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12)), min_size=4, max_size=4),
    by_key=st.booleans(),
)
def test_shares_are_as_weights(weights: list[float], sizes: list[tuple[int, int]], by_key: bool) -> None:
    clients = [
        Client(
            f"c{i}", 10, "" if by_key else f"a{i}", f"k{i}" if by_key else "",
            weight=weight, prompt=prompt, outputs=outputs,
        )
        for i, (weight, (prompt, outputs)) in enumerate(zip(weights, sizes, strict=False))
    ]  # fmt: skip
    found = shares(Shared(*clients, seqs=6, num_blocks=48).run(500).served)
    for client in clients:
        assert found[client.name] == pytest.approx(client.weight / sum(weights), rel=0.1)


def test_who_asks_for_less_than_its_share_gets_it_and_others_the_rest() -> None:
    shared = Shared(Client("quiet", 1, "q"), Client("flood", 64, "f"), seqs=8).run(400)
    assert shared.outputs["quiet"] >= 0.85 * 400, "but for a step or two in each request of eight"
    assert all(sum(rows.values()) >= 8 for rows in shared.rows[20:]), "no place is left empty"


@settings(max_examples=12)
@given(
    clients=st.lists(
        st.tuples(
            st.integers(1, 6), st.sampled_from(["", "a", "b"]), st.sampled_from(["", "k", "l"]),
            st.sampled_from([0.25, 1.0, 4.0]), st.integers(0, 2), st.integers(1, 12), st.integers(1, 12),
        ),
        min_size=1, max_size=5,
    ),
    seqs=st.integers(1, 5),
    blocks=st.integers(6, 40),
    fixed_rows=st.sampled_from([0.0, 2.0, float("inf")]),
)  # fmt: skip
@example(  # prompts that are begun, behind those of a higher priority that fill every step
    clients=[
        (1, "", "", 0.25, 0, 1, 3), (1, "", "", 0.25, 0, 3, 1), (1, "", "", 0.25, 1, 5, 1), (1, "", "k", 0.25, 0, 9, 1),
    ],
    seqs=3, blocks=6, fixed_rows=0.0,
)  # fmt: skip
@example(  # one that computes its prompt again and again, for a higher priority takes its blocks before a token comes
    clients=[
        (6, "", "", 0.25, 1, 10, 4), (4, "a", "l", 1.0, 1, 3, 6), (2, "b", "l", 1.0, 1, 9, 12),
        (2, "a", "l", 1.0, 2, 2, 8),
    ],
    seqs=3, blocks=11, fixed_rows=2.0,
)  # fmt: skip
@example(  # the same, and those who take the blocks are of its own priority, let in by the turns of the starved
    clients=[(6, "a", "", 1.0, 0, 2, 3), (1, "b", "l", 0.25, 1, 4, 3), (4, "a", "k", 1.0, 0, 8, 8)],
    seqs=3, blocks=6, fixed_rows=2.0,
)  # fmt: skip
@example(  # one whose prompt is computed, and who loses its place before the first token
    clients=[(3, "a", "l", 0.25, 0, 11, 8), (2, "", "k", 1.0, 2, 4, 11), (4, "a", "k", 1.0, 1, 10, 8)],
    seqs=3, blocks=11, fixed_rows=2.0,
)  # fmt: skip
@example(  # the lowest priority, where one in the middle starves as well
    clients=[(1, "b", "", 1.0, 2, 8, 6), (4, "b", "", 4.0, 1, 6, 6), (5, "b", "", 4.0, 0, 7, 7)],
    seqs=3, blocks=6, fixed_rows=0.0,
)  # fmt: skip
@example(  # many that starve, of which each has its turn
    clients=[
        (6, "b", "l", 4.0, 1, 7, 8), (4, "b", "l", 0.25, 1, 8, 2), (3, "", "l", 1.0, 2, 5, 11),
        (4, "a", "", 0.25, 1, 12, 9), (4, "a", "l", 0.25, 1, 10, 9),
    ],
    seqs=1, blocks=20, fixed_rows=2.0,
)  # fmt: skip
def test_nobody_starves_and_no_step_is_idle(
    clients: list[tuple[int, str, str, float, int, int, int]], seqs: int, blocks: int, fixed_rows: float
) -> None:
    """Each of the first requests comes to its end, as the eighth starts alone would let them.

    The oldest waits for eight starts at most for each of its tokens, and each of these for a row every eighth step.
    """
    made = [Client(f"c{i}", *client) for i, client in enumerate(clients)]
    shared = Shared(*made, seqs=seqs, num_blocks=blocks, fixed_rows=fixed_rows, step_seconds=STARVED_SECONDS / 20)
    first = set(shared.run(1).scheduler.requests)
    longest = max(client.prompt + client.outputs for client in made)
    most = STARVED_EVERY * PAUSED_STEPS * longest * len(first)
    while not first.isdisjoint(shared.scheduler.requests):
        assert len(shared.rows) <= most, first & shared.scheduler.requests.keys()
        shared.step()


# ---- places ----


def test_a_waiting_request_takes_a_place_of_who_has_far_more() -> None:
    shared = Shared(Client("flood", 8, "f", outputs=500), seqs=8).run(10)
    quiet = shared.ask(Client("quiet", 1, "q"))
    shared.step()
    assert [request.request_id for request in shared.scheduler.preempted] == ["flood/7"], "the last that came"
    shared.run(9)
    assert quiet.status is RequestStatus.FINISHED
    assert not shared.scheduler.preempted, "it is back once there is room"


@pytest.mark.parametrize("held", [1, 2])
def test_the_last_place_is_not_taken(held: int) -> None:
    shared = Shared(Client("a", held, "a", outputs=500), seqs=held).run(3)
    other = shared.ask(Client("b", 1, "b"))
    shared.step()
    assert (other.status is RequestStatus.RUNNING) == (held == 2)


def test_places_are_not_taken_back_and_forth() -> None:
    shared = Shared(*(Client(name, 20, name, outputs=40) for name in "abc"), seqs=7).run(300)
    assert shared.scheduler.num_preemptions <= 12, "of three hundred steps"


def test_a_higher_priority_takes_any_place() -> None:
    shared = Shared(Client("low", 2, "l", outputs=500), seqs=2).run(3)
    high = [shared.ask(Client("high", 2, "h", priority=1)) for _ in range(2)]
    shared.step()
    assert {request.status for request in high} == {RequestStatus.RUNNING}
    assert len(shared.scheduler.preempted) == 2


def test_who_was_overdue_keeps_the_place() -> None:
    shared = Shared(
        Client("high", 4, "h", priority=1), Client("low", 1, "l", outputs=30), seqs=2, step_seconds=STARVED_SECONDS / 5
    ).run(100)
    assert shared.waits["low"]
    assert shared.outputs["high"] > 2 * shared.outputs["low"]


@pytest.mark.parametrize("fair", [True, False])
def test_blocks_are_taken_from_who_was_served_most(fair: bool) -> None:
    shared = Shared(Client("flood", 4, "f", outputs=500), seqs=8, num_blocks=12, fair=fair)
    shared.run(3)
    quiet = shared.ask(Client("quiet", 1, "q", outputs=12))
    shared.run(12)
    assert (quiet.status is RequestStatus.FINISHED) == fair
    assert shared.scheduler.num_preemptions > 0


# ---- rows ----


def test_a_quiet_one_is_slowed_down_within_bounds() -> None:
    """Time is ``fixed_rows`` + rows: alone a step of the quiet one takes 9, beside others a quarter more at most."""
    shared = Shared(Client("flood", 64, "f", outputs=50), seqs=64, num_blocks=900, fixed_rows=8.0).run(30)
    shared.clients["quiet"] = Client("quiet", 1, "q", outputs=100)
    shared.run(90)
    decoding = shared.rows[33:]
    assert all(rows["quiet"] == 1 for rows in decoding)
    assert max(sum(rows.values()) for rows in decoding) <= (2 - MARGIN) * 9 - 8
    assert min(rows["flood"] for rows in decoding) >= 2, "and others have the rest"


def test_rows_take_turns() -> None:
    shared = Shared(Client("flood", 30, "f", outputs=900), seqs=64, fixed_rows=8.0, num_blocks=900).run(3)
    shared.ask(Client("quiet", 1, "q", outputs=900))
    shared.run(300)
    done = [r.num_output_tokens for r in shared.scheduler.running if r.request_id.startswith("flood")]
    assert len(done) == 30
    assert max(done) - min(done) <= 2


def test_steps_stay_short_for_who_comes_back_at_once() -> None:
    shared = Shared(
        Client("flood", 40, "f", outputs=500), Client("quiet", 1, "q", outputs=20), seqs=64, fixed_rows=8.0,
        step_seconds=LINGER_SECONDS / 10,
    )  # fmt: skip
    shared.run(10)
    del shared.clients["quiet"]
    while any(name.startswith("quiet") for name in shared.scheduler.requests):
        shared.step()
    shared.run(8)
    assert max(sum(rows.values()) for rows in shared.rows[-7:]) == 10, "twice the time of one row alone, 8 + 1"
    shared.run(5)
    assert sum(shared.rows[-1].values()) == 40


def test_alone_nobody_is_bounded() -> None:
    shared = Shared(Client("flood", 40, "f", outputs=500), seqs=64, num_blocks=900, fixed_rows=0.0).run(5)
    assert sum(shared.rows[-1].values()) == 40


def test_alike_are_not_bounded() -> None:
    shared = Shared(*(Client(f"c{i}", 2, f"a{i}", outputs=500) for i in range(16)), seqs=64, fixed_rows=2.0).run(10)
    assert sum(shared.rows[-1].values()) == 32


def test_tokens_of_prompts_count_as_the_time_that_they_take() -> None:
    """Alone a step of the quiet one takes 8 + 1; 1.25 times that leaves 2 rows, or 18 tokens of an eighth of one.

    Fewer than sixteen tokens are no cheaper than rows.
    """

    def beside_a_prompt(token_rows: float) -> int:
        shared = Shared(Client("quiet", 1, "q", outputs=90), fixed_rows=8.0, token_rows=token_rows, tokens=200).run(3)
        shared.ask(Client("long", 1, "l", prompt=400))
        return shared.run(2).rows[-1]["long"]  # in its first step it is the one who was served least

    assert (beside_a_prompt(1.0), beside_a_prompt(0.25), beside_a_prompt(0.125)) == (2, 2, 18)


def test_a_flood_waits_while_the_prompt_of_a_quiet_one_is_computed() -> None:
    """Alone it takes 4 + 100; 1.2 times that leaves 20 rows for the flood, and they are not taken from the prompt."""
    shared = Shared(Client("flood", 60, "f", outputs=500), seqs=64, num_blocks=900, fixed_rows=4.0, tokens=200).run(20)
    assert sum(shared.rows[-1].values()) == 60
    shared.ask(Client("quiet", 1, "q", prompt=100))
    assert shared.run(1).rows[-1] == {"flood": 20, "quiet": 100}


def test_who_is_served_more_is_not_slowed_down_for_it() -> None:
    """After a long prompt others go first, but their rows leave the next token within bounds."""
    shared = Shared(Client("flood", 60, "f", outputs=500), seqs=64, num_blocks=900, fixed_rows=4.0, tokens=200).run(20)
    shared.ask(Client("quiet", 1, "q", prompt=150, outputs=90))
    shared.run(8)
    begun = next(i for i, rows in enumerate(shared.rows) if rows["quiet"] == 1)
    assert all(sum(rows.values()) <= 2 for rows in shared.rows[begun:])


@pytest.mark.parametrize(("token_rows", "steps"), [(0.125, PAUSED_STEPS), (1.0, 16 / 3 / LET_PASS)])
def test_prompts_without_room_take_a_tenth_of_the_time(token_rows: float, steps: float) -> None:
    """Sixteen tokens beside steps of 1 + 2 rows' time: the quiet one's and one of the flood, which has many."""
    shared = Shared(
        Client("flood", 8, "f", outputs=900), Client("quiet", 1, "q", outputs=900), seqs=16, num_blocks=900, tokens=99,
        fixed_rows=1.0, token_rows=token_rows,
    ).run(20)  # fmt: skip
    shared.ask(Client("long", 1, "f", prompt=90))
    at = [step for step, rows in enumerate(shared.run(200).rows) if rows["long"]]
    assert all(later - step == pytest.approx(steps, abs=1) for step, later in pairwise(at[:4]))


def test_prompts_that_are_alone_do_not_wait_for_who_may_come_back() -> None:
    """Though a token of theirs takes longer than a step may for the one that is away."""
    shared = Shared(Client("quiet", 1, "q", outputs=2), fixed_rows=0.0, token_rows=3.0).run(2)
    del shared.clients["quiet"]
    shared.ask(Client("long", 1, "l", prompt=40))
    assert [rows["long"] for rows in shared.run(3).rows[-3:]] == [16, 16, 8]


def test_a_lower_priority_makes_steps_little_longer() -> None:
    shared = Shared(
        Client("low", 40, "l", outputs=500), Client("high", 4, "h", priority=1, outputs=500), seqs=64, fixed_rows=8.0
    ).run(60)
    decoding = shared.rows[5:]
    assert all(rows["high"] == 4 for rows in decoding)
    assert max(rows["low"] for rows in decoding) == 3, "1.25 times 12, without 12"


def test_a_flow_that_others_leave_out_has_a_row_now_and_then() -> None:
    """Key and adapter of one are both in demand by others: by their accounts alone it would never have a turn."""
    shared = Shared(
        Client("x", 30, "a", "k", outputs=900), Client("z", 30, "b", "l", outputs=900),
        Client("y", 1, "a", "l", outputs=900), Client("quiet", 1, "c", "m", outputs=900), seqs=64, fixed_rows=4.0,
    ).run(300)  # fmt: skip
    assert shared.outputs["y"] >= 300 / (PAUSED_STEPS + 4)


def test_of_equal_prompts_one_ends_after_the_other() -> None:
    shared = Shared(*(Client(f"c{i}", 1, f"a{i}", prompt=40, outputs=90) for i in range(4)), seqs=8, tokens=16)
    shared.run(6)
    done = [request.num_output_tokens > 0 for request in shared.scheduler.requests.values()]
    assert sum(done) == 2, "in turn all would still be at it"


def test_a_prompt_waits_for_no_longer_prompt_of_others() -> None:
    shared = Shared(seqs=8, tokens=16)
    shared.ask(Client("long", 1, "a", prompt=400))
    shared.run(2)
    short = shared.ask(Client("short", 1, "b", prompt=10))
    shared.run(1)
    assert short.num_output_tokens == 1


def test_a_prompt_does_not_wait_for_rows_of_its_own_flow_to_end() -> None:
    shared = Shared(fixed_rows=1.0, seqs=16)
    for _ in range(4):
        shared.ask(Client("many", 1, "a", outputs=100))
    shared.ask(Client("one", 1, outputs=100))
    shared.run(2)
    late = shared.ask(Client("late", 1, "a", outputs=100))
    shared.run(24)
    assert late.num_output_tokens >= 1


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("fixed_rows", [0.0, 4.0])
def test_nobody_is_left_out_for_who_has_as_much(streams: int, fixed_rows: float) -> None:
    """Rows left out for each other's sake would make all of them slower."""
    clients = [Client(name, streams, name, outputs=500) for name in "ab"]
    shared = Shared(*clients, seqs=16, fixed_rows=fixed_rows).run(60)
    assert all(rows == {"a": streams, "b": streams} for rows in shared.rows[40:])
