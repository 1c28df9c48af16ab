"""Whose turn it is: virtual token counters of keys and of adapters, with weights, within classes of priority.

The Virtual Token Counter of "Fairness in Serving Large Language Models" (Sheng et al., 2024): whoever has received the
least service goes next, and who comes back after a pause gets no credit for it. A request is on two accounts, its
key's and its adapter's (all versions of a name share one; the base's name is empty), and the one that has had more than
others decides: neither many adapters of one key nor many keys of one adapter get ahead by being many. A combination of
adapters is on the accounts of all of them.
Knows neither blocks nor budgets.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from server.adapter_key import PLUS
from server.engine.request import Request

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2  # an output token costs a whole step of a sequence, prompt tokens share one
MAX_COUNTERS = 4096  # of one kind of account
STARVED_SECONDS = 10.0  # a flow of which nothing runs for so long is let in before others,
STARVED_EVERY = 8  # by every eighth start: to all those who wait in an overloaded server priorities still matter


Account = tuple[str, str]  # "key" or "adapter", and its name


class Flow(NamedTuple):
    """Requests between which first come is first served: those of one key to one adapter, in one class of priority.

    ``adapter`` has the names of several that are combined, as an ``AdapterKey`` has.
    """

    priority: int
    key: str
    adapter: str

    @property
    def accounts(self) -> list[Account]:
        """On whose accounts it is served: its key's, and those of its adapters."""
        return [("key", self.key), *(("adapter", name) for name in dict.fromkeys(self.adapter.split(PLUS)))]


Rank = tuple[float, float, float, int]  # the smaller one is served first
_by_arrival = attrgetter("arrival")


class Accounts:
    """Service by name, in tokens over weight, of those that have requests, and of those that had some."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._requests: dict[str, int] = {}  # how many, of those that have some
        self._last_left = ""
        self._base = 0.0

    def enter(self, name: str) -> bool:
        """A request of ``name`` has come; returns whether it is the only one.

        Then its counter is lifted to the least of those who have requests.
        """
        is_first = name not in self._requests
        if is_first:
            self._served[name] = max(self.served(name), self._least())
        self._requests[name] = self._requests.get(name, 0) + 1
        return is_first

    def leave(self, name: str) -> None:
        """A request of ``name`` is gone."""
        self._requests[name] -= 1
        if not self._requests[name]:
            del self._requests[name]
            self._last_left = name
            self._prune()

    def charge(self, name: str, amount: float) -> None:
        """Count service."""
        self._served[name] = self.served(name) + amount

    def served(self, name: str) -> float:
        """The virtual token counter of ``name``."""
        return self._served.get(name, 0.0)

    def rebase(self) -> None:
        """Count excess from what the one served least has had by now."""
        self._base = self._least()

    def excess(self, name: str) -> float:
        """What ``name`` has had more than the one who was served least at the last ``rebase``."""
        return self.served(name) - self._base

    def _least(self) -> float:
        """Of those that have requests; without any, what the last who had one has had."""
        return min(map(self.served, self._requests), default=self.served(self._last_left))

    def _prune(self) -> None:
        """Forget the lowest idle counters when there are very many: they would be lifted anyway."""
        if len(self._served) > MAX_COUNTERS:
            idle = sorted(self._served.keys() - {*self._requests, self._last_left}, key=self.served)
            for name in idle[: MAX_COUNTERS // 2]:
                del self._served[name]


class _Class:
    """The accounts of one priority: those of others are served before or after, however much that is."""

    def __init__(self) -> None:
        self.keys = Accounts()
        self.adapters = Accounts()

    def of(self, flow: Flow) -> list[tuple[Accounts, str]]:
        """The accounts of a flow, the key's first."""
        return [(self.keys if kind == "key" else self.adapters, name) for kind, name in flow.accounts]


class FairQueue:
    """The requests that wait, by flow, and the service of all that live. Unless ``fair``, everybody is one flow."""

    def __init__(self, *, fair: bool = True) -> None:
        self._fair = fair
        self._queues: dict[Flow, list[Request]] = {}  # each in the order of arrival
        self._classes: dict[int, _Class] = {}
        self._running: Counter[Flow] = Counter()
        self._starts = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Request]:
        for queue in self._queues.values():
            yield from queue

    # ---- requests come and go ----

    def enter(self, request: Request) -> None:
        """Count a request among those that compete, until ``leave``."""
        both = self._accounts(request)
        are_new = [accounts.enter(name) for accounts, name in both]
        if any(are_new):
            for accounts, _ in both:  # what was before says nothing of those who compete now
                accounts.rebase()

    def leave(self, request: Request) -> None:
        """A request has ended."""
        for accounts, name in self._accounts(request):
            accounts.leave(name)

    def push(self, request: Request) -> None:
        """Let a request wait in its flow, among the others in the order of arrival."""
        insort(self._queues.setdefault(self.flow(request), []), request, key=_by_arrival)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        flow = self.flow(request)
        self._queues[flow].remove(request)
        if not self._queues[flow]:
            del self._queues[flow]

    def start(self, request: Request) -> None:
        """Take out a request that is let in, and runs until ``stop``."""
        self.remove(request)
        self._running[self.flow(request)] += 1
        self._starts += 1

    def stop(self, request: Request) -> None:
        """A request has lost its place, or ended."""
        flow = self.flow(request)
        self._running[flow] -= 1
        if not self._running[flow]:
            del self._running[flow]

    # ---- turns ----

    def flow(self, request: Request) -> Flow:
        """The flow of a request."""
        if not self._fair:
            return Flow(0, "", "")
        return Flow(request.priority, request.tenant, request.adapter.name if request.adapter else "")

    def rank(self, flow: Flow) -> Rank:
        """Whose requests are served before whose: by priority, then by service, then by how many run."""
        key, *adapters = (accounts.excess(name) for accounts, name in self._class(flow).of(flow))
        adapter = max(adapters)
        return -flow.priority, max(key, adapter), key + adapter, self._running[flow]

    def num_running(self, flow: Flow) -> int:
        """How many requests of a flow have a place."""
        return self._running[flow]

    def heads(self) -> dict[Flow, Request]:
        """The oldest waiting request of each flow."""
        return {flow: queue[0] for flow, queue in self._queues.items()}

    def pending_tokens(self, flow: Flow, most: int) -> int:
        """How many tokens the waiting requests of a flow want computed, or ``most``."""
        count = 0
        for request in self._queues[flow]:
            count += request.num_pending_tokens
            if count >= most:
                return most
        return count

    def next(self) -> Request | None:
        """The request that is next: the oldest of the flow served least."""
        if not self._queues:
            return None
        _, _, request = min((self.rank(flow), head.arrival, head) for flow, head in self.heads().items())
        return request

    def overdue(self, left_out: Sequence[Request], now: float) -> Request | None:
        """Every eighth time the request that is next whatever its priority and service, if one starves; it is marked.

        The oldest of those of whose flow nothing runs, and of those that run and are ``left_out`` of a step: who has
        lost a place and generated nothing since, or whose prompt waits for those of higher priorities.
        """
        if self._starts % STARVED_EVERY != STARVED_EVERY - 1:
            return None
        begun = [request for request in left_out if request.num_pending_tokens > 1]
        highest = max((flow.priority for flow in (*self._queues, *map(self.flow, begun))), default=0)
        starved = [head for flow, head in self.heads().items() if not self._running[flow]]
        starved += [request for request in begun if self.flow(request).priority < highest]
        starved += [request for request in left_out if request.is_set_back]
        late = [request for request in starved if now - request.arrived_at >= STARVED_SECONDS]
        oldest = min(late, key=_by_arrival, default=None)
        if oldest is not None:
            oldest.is_overdue = True
            self._starts += oldest in left_out
        return oldest

    # ---- service ----

    def charge_prompt(self, request: Request, num_tokens: int) -> None:
        """Account for prompt tokens that are computed, for the first time."""
        self._charge(request, PROMPT_WEIGHT * num_tokens)

    def charge_output(self, request: Request) -> None:
        """Account for one generated token."""
        self._charge(request, OUTPUT_WEIGHT)

    def _charge(self, request: Request, amount: float) -> None:
        for accounts, name in self._accounts(request):
            accounts.charge(name, amount / request.weight)

    def _accounts(self, request: Request) -> list[tuple[Accounts, str]]:
        flow = self.flow(request)
        return self._class(flow).of(flow)

    def _class(self, flow: Flow) -> _Class:
        found = self._classes.get(flow.priority)
        if found is None:
            found = self._classes[flow.priority] = _Class()
        return found
