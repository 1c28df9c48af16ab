"""Waiting requests in fair order: first come first served within an adapter, by virtual token counters between them.

The Virtual Token Counter of "Fairness in Serving Large Language Models" (Sheng et al., 2024): whoever has received
the least service goes next, and an adapter that comes back after a pause gets no credit for it.
Knows neither blocks nor budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from server.engine.request import Request

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2  # an output token costs a whole step of a sequence, prompt tokens share one
MAX_COUNTERS = 4096


class FairQueue:
    """Queues by adapter name (all versions of a name share one account; the base's name is empty)."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Request]] = {}
        self._counters: dict[str, int] = {}
        self._last_left = ""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Request]:
        for queue in self._queues.values():
            yield from queue

    def push(self, request: Request) -> None:
        """Add a request at the end of its adapter's queue."""
        name = account(request)
        if name not in self._queues:
            self._lift(name)
            self._queues[name] = deque()
        self._queues[name].append(request)

    def peek(self) -> Request | None:
        """The request that is next: the oldest of the adapter served least."""
        heads = [(self._counters[name], queue[0].arrival, queue[0]) for name, queue in self._queues.items()]
        return min(heads)[2] if heads else None

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        name = account(request)
        self._queues[name].remove(request)
        if not self._queues[name]:
            del self._queues[name]
            self._last_left = name
            self._prune()

    def charge_prompt(self, request: Request, num_tokens: int) -> None:
        """Account for prompt tokens that have to be computed."""
        self._charge(account(request), PROMPT_WEIGHT * num_tokens)

    def charge_output(self, request: Request) -> None:
        """Account for one generated token."""
        self._charge(account(request), OUTPUT_WEIGHT)

    def served(self, name: str) -> int:
        """The virtual token counter of an adapter name."""
        return self._counters.get(name, 0)

    def _charge(self, name: str, amount: int) -> None:
        self._counters[name] = self._counters.get(name, 0) + amount

    def _lift(self, name: str) -> None:
        floor = min((self._counters[n] for n in self._queues), default=self.served(self._last_left))
        self._counters[name] = max(self.served(name), floor)

    def _prune(self) -> None:
        """Forget the lowest idle counters when there are very many: they would be lifted anyway."""
        if len(self._counters) > MAX_COUNTERS:
            keep = set(self._queues) | {self._last_left}
            idle = sorted(self._counters.keys() - keep, key=self._counters.__getitem__)
            for name in idle[: MAX_COUNTERS // 2]:
                del self._counters[name]


def account(request: Request) -> str:
    """The name under which a request's service is counted."""
    return request.adapter.name if request.adapter else ""
