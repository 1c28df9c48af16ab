"""What turns mean for those who run: whose place another one takes, and which rows a step computes.

A step takes as long as its slowest neighbours make it. So that one who asks for little is not slowed down by one who
asks for much, rows are left out of a step that would take anybody longer than their share of the machine allows; they
keep their KV and have their turn in a later step. Knows neither blocks nor budgets.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.engine.fair_queue import Account, FairQueue, Flow
from server.engine.request import Request

MARGIN = 3 / 4  # of its time alone, that nobody else may take: arriving amid a step, and what is no step, take time too
PROMPT_MARGIN = 0.8  # for prompts: rows beside them take longer than beside other rows, and nothing is shown meanwhile
SLOWED_BY_LOWER = 1.25  # times as long as without them may rows of lower priority make a step
LINGER_SECONDS = 0.5  # steps stay as short for somebody who may ask again
PAUSED_STEPS = 8  # for so long at most is a flow left out altogether
LEAST_PROMPT = 16  # tokens of prompts at once; what fewer take is no part of that, but up to a row's time each
LET_PASS = 0.1  # of the time at most do prompts take for which there is no room


def last_in_turn(running: Sequence[Request], queue: FairQueue) -> Request:
    """Who loses its blocks first when there are too few.

    The lowest priority, of those flows that have more than one running, of the one that was served most, the last that
    came.
    """
    counts = Counter(map(queue.flow, running))

    def turn(request: Request) -> tuple[object, ...]:
        flow = queue.flow(request)
        return not request.is_overdue, -flow.priority, counts[flow] > 1, queue.rank(flow), request.arrival

    return max(running, key=turn)


def who_yields(request: Request, running: Sequence[Request], queue: FairQueue) -> Request | None:
    """Whose place a waiting request takes, if anybody's.

    One of a lower priority; or, where nothing of its own flow runs, one of those who hold far more: at least twice as
    much as its own accounts would hold then, and were not served less, so that nobody takes it back. Nobody loses the
    last place to their like.
    """
    flow, counts = queue.flow(request), Counter(map(queue.flow, running))
    held = _held(running, queue)

    def yields(other: Request) -> bool:
        its = queue.flow(other)
        if other.is_overdue or its.priority < flow.priority:
            return not other.is_overdue
        if counts[flow] or counts[its] < 2:
            return False
        return request.is_overdue or (queue.rank(flow) <= queue.rank(its) and far_more(its))

    def far_more(its: Flow) -> bool:
        own = sum(held[mine] + 1 / request.weight for mine in flow.accounts if mine not in its.accounts)
        others = sum(held[theirs] for theirs in its.accounts if theirs not in flow.accounts)
        return its.priority == flow.priority and others >= 2 * own

    able = [other for other in running if yields(other)]
    return last_in_turn(able, queue) if able else None


def _held(running: Iterable[Request], queue: FairQueue) -> dict[Account, float]:
    """How many places each account holds, over weight."""
    held: dict[Account, float] = defaultdict(float)
    for request in running:
        for account in queue.flow(request).accounts:
            held[account] += 1 / request.weight
    return held


@dataclass(frozen=True)
class _Want:
    """What a request would compute of its own in a step: its row and draft, or as much as fits of its prompt.

    It takes as long as ``rows``.
    """

    request: Request
    flow: Flow
    rows: float
    is_row: bool


@dataclass
class _Demand:
    """What an account would compute in a step by itself, and its weight. ``is_away``: it has just had a request."""

    rows: float = 0.0
    prompts: float = 0.0  # of those rows
    weight: float = 0.0
    is_away: bool = False

    def fits(self, rows: float) -> bool:
        """Whether it generates, and for all that do so ``rows`` suffice."""
        return 0 < self.rows - self.prompts <= rows

    def most(self, share: float) -> float:
        """How many times as long as by itself it may take, with a ``share`` of the machine."""
        if self.is_away:  # it will wait for the end of one such step, not for each
            return 1 / share
        return 1 / share - (PROMPT_MARGIN if self.prompts else MARGIN)


@dataclass
class StepPart:
    """Which running requests have a row in a step, and how many tokens of prompts there are beside them.

    ``others`` have the rows, in turn, that prompts leave: some of these may not fit.
    """

    rows: list[Request]
    prompt_tokens: int
    others: list[Request] = field(default_factory=list)


class StepShares:
    """Divides steps. Remembers who had requests a moment ago."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._left: dict[tuple[int, Account], tuple[float, float]] = {}  # when, and with what weight
        self._prompts_at = 0  # the last step that had some

    def leave(self, request: Request, now: float) -> None:
        """A request has ended."""
        flow = self._queue.flow(request)
        for account in flow.accounts:
            self._left[flow.priority, account] = now, request.weight

    def divide(
        self,
        running: Sequence[Request],
        *,
        most: int,
        prompt_tokens: int,
        fixed_rows: float,
        token_rows: float,
        step: int,
        now: float,
    ) -> StepPart:
        """Who has a part of step number ``step``, which has at most ``most`` tokens, ``prompt_tokens`` of prompts.

        What a step costs besides its rows takes as long as ``fixed_rows``, a token of a prompt as ``token_rows``.
        """
        if math.isinf(fixed_rows):  # rows cost nothing
            return StepPart([request for request in running if request.num_pending_tokens == 1], prompt_tokens)
        wants = list(self._wants(running, most, token_rows))
        demands = self._demands(wants, now)
        if sum(map(len, demands.values())) <= 2:  # one key and one adapter
            return StepPart([want.request for want in wants if want.is_row], prompt_tokens)
        division = _Division(demands, fixed_rows, prompt_tokens, token_rows, step)
        part = division.of(self._in_turn(wants, step), step - self._prompts_at)
        if part.prompt_tokens or all(want.is_row for want in wants):
            self._prompts_at = step
        return part

    def _wants(self, running: Sequence[Request], most: int, token_rows: float) -> Iterator[_Want]:
        def prompt(request: Request, flow: Flow, tokens: int) -> _Want:
            return _Want(request, flow, max(1.0, tokens * token_rows), is_row=False)

        for request in running:
            flow, pending = self._queue.flow(request), request.num_pending_tokens
            if pending == 1:
                yield _Want(request, flow, 1.0 + len(request.draft), is_row=True)
            else:
                yield prompt(request, flow, min(pending, most))
        for flow, head in self._queue.heads().items():
            yield prompt(head, flow, self._queue.pending_tokens(flow, most))

    def _demands(self, wants: Iterable[_Want], now: float) -> dict[int, dict[Account, _Demand]]:
        """By priority and account."""
        found: dict[int, dict[Account, _Demand]] = defaultdict(lambda: defaultdict(_Demand))
        for want in wants:
            for account in want.flow.accounts:
                demand = found[want.flow.priority][account]
                demand.rows += want.rows
                demand.prompts += 0.0 if want.is_row else want.rows
                demand.weight = max(demand.weight, want.request.weight)
        self._left = {who: left for who, left in self._left.items() if now - left[0] < LINGER_SECONDS}
        for (priority, account), (_, weight) in self._left.items():
            if account not in found[priority]:
                found[priority][account] = _Demand(1.0, weight=weight, is_away=True)
        return found

    def _in_turn(self, wants: list[_Want], step: int) -> list[_Want]:
        """Those served least first; of a flow rows and prompts by turns, and of rows that which was paused for longest.

        Its rows alone may take all the room that others leave it: a prompt would wait until they have ended.
        """
        prompts_first = step % 2 == 0
        ranks = {flow: self._queue.rank(flow) for flow in {want.flow for want in wants}}

        def turn(want: _Want) -> tuple[object, ...]:
            request = want.request
            return ranks[want.flow], want.is_row == prompts_first, request.last_step, request.num_output_tokens

        return sorted(wants, key=turn)


class _Division:
    """One step being divided. Room shrinks with each account that has a part, so that it is slowed within bounds."""

    def __init__(
        self,
        demands: Mapping[int, Mapping[Account, _Demand]],
        fixed_rows: float,
        prompt_tokens: int,
        token_rows: float,
        step: int,
    ) -> None:
        self._step = step
        self._demands = demands
        self._shares = {priority: _shares(of_priority) for priority, of_priority in demands.items()}
        self._fixed_rows = fixed_rows
        self._prompt_tokens = prompt_tokens
        self._token_rows = token_rows
        self._used = 0.0  # rows
        self._room = math.inf
        self._bound: set[Account] = set()
        self._have: set[str] = set()  # who has a row in any case
        self._part = StepPart([], 0)

    def of(self, wants: Sequence[_Want], waited: int) -> StepPart:
        """The part of everybody, in the order of ``wants``; prompts have ``waited`` for so many steps."""
        for priority in sorted(self._demands, reverse=True):
            away = [account for account, demand in self._demands[priority].items() if demand.is_away]
            mine = [want for want in wants if want.flow.priority == priority]
            parts = _equal_parts(self._demands[priority], self._shares[priority], self._fixed_rows)
            small = [account for account, demand in self._demands[priority].items() if demand.fits(parts[account])]
            if math.isinf(self._room):
                self._give_equal_rows(mine, parts)
            self._make_bounds(priority, [*away, *small])  # though their turn may come later
            for want in mine:
                self._make_bounds(priority, want.flow.accounts)
                self._give(want)
            if self._used or away:
                self._limit(max(self._used, 1.0), SLOWED_BY_LOWER)
            self._bound.clear()
        self._let_pass_row(wants)
        self._let_pass_prompts(wants, waited)
        return self._part

    def _let_pass_prompts(self, wants: Sequence[_Want], waited: int) -> None:
        """Some tokens of prompts that had no room for long: the longer, the dearer they are beside such steps.

        At once where nobody has a row: a step of nothing makes nobody faster.
        """
        pending = sum(want.rows for want in wants if not want.is_row)
        steps = min(pending, LEAST_PROMPT * self._token_rows) / (self._fixed_rows + max(self._used, 1.0))
        if not pending or self._part.prompt_tokens:
            return
        if not self._part.rows or waited >= max(PAUSED_STEPS, steps / LET_PASS):
            self._part.prompt_tokens = min(self._prompt_tokens, LEAST_PROMPT)

    def _let_pass_row(self, wants: Sequence[_Want]) -> None:
        """A row for a flow that has had none for long."""
        ids = {request.request_id for request in self._part.rows}
        served = {want.flow for want in wants if want.request.request_id in ids}
        apart = [want for want in wants if want.flow not in served]
        last_steps: dict[Flow, int] = defaultdict(int)
        for want in apart:
            last_steps[want.flow] = max(last_steps[want.flow], want.request.last_step)
        late = [want.request for want in apart if want.is_row and self._step - last_steps[want.flow] > PAUSED_STEPS]
        if late:
            self._part.rows.append(min(late, key=lambda request: request.last_step))

    def _make_bounds(self, priority: int, accounts: Iterable[Account]) -> None:
        demands = self._demands[priority]
        for account in accounts:
            if account in self._bound:
                continue
            self._bound.add(account)
            if (share := self._shares[priority][account]) < 1:
                self._limit(demands[account].rows, demands[account].most(share))

    def _limit(self, rows: float, slowed: float) -> None:
        """Let what takes as long as ``rows`` be ``slowed`` so many times at most, or by one row."""
        self._room = min(self._room, max(rows + 1, slowed * (self._fixed_rows + rows) - self._fixed_rows))

    def _give_equal_rows(self, wants: Sequence[_Want], parts: dict[Account, float]) -> None:
        """Give rows, whatever room there will be, as far as the accounts have ``parts`` for them."""
        for want in wants:
            accounts = want.flow.accounts
            if want.is_row and all(parts[account] >= 1 for account in accounts):
                for account in accounts:
                    parts[account] -= 1
                self._have.add(want.request.request_id)
                self._used += 1
                self._part.rows.append(want.request)

    def _give(self, want: _Want) -> None:
        has_row = want.request.request_id in self._have
        room = max(0.0, min(self._room - self._used, want.rows - has_row))
        left = int(room)
        if has_row:
            del want.request.draft[left:]
            self._used += len(want.request.draft)
        elif want.is_row and left:
            del want.request.draft[left - 1 :]
            self._used += 1 + len(want.request.draft)
            self._part.rows.append(want.request)
        elif want.is_row:
            self._part.others.append(want.request)
        else:
            each = self._token_rows if room >= LEAST_PROMPT * self._token_rows else max(1.0, self._token_rows)
            fit = int(room / each + 1e-6)  # all of a prompt, though its rows are not exact
            count = min(fit, self._prompt_tokens - self._part.prompt_tokens)
            self._used += count * each
            self._part.prompt_tokens += count


def _shares(demands: Mapping[Account, _Demand]) -> dict[Account, float]:
    """Which part of the machine each account has among those of its kind, by weight."""
    weights: dict[str, float] = defaultdict(float)
    for (kind, _), demand in demands.items():
        weights[kind] += demand.weight
    return {account: demand.weight / weights[account[0]] for account, demand in demands.items()}


def _equal_parts(
    demands: Mapping[Account, _Demand], shares: Mapping[Account, float], fixed_rows: float
) -> dict[Account, float]:
    """How many rows each account has where all have, over weight, what the one has that wants least.

    Nobody can ask others to have less than that: all would wait for each other in turn. Beside prompts of one others
    have together what does not slow these down beyond bounds.
    """
    least: dict[str, float] = defaultdict(lambda: math.inf)
    for account, demand in demands.items():
        if (share := shares[account]) < 1:
            others = demand.weight * (1 / share - 1)  # their weight
            longer = max(0.0, demand.most(share) - 1)
            beside = longer * (fixed_rows + demand.prompts) / others if demand.prompts else 0.0
            least[account[0]] = min(least[account[0]], (demand.rows - demand.prompts) / demand.weight + beside)
    return {account: least[account[0]] * demand.weight for account, demand in demands.items()}
