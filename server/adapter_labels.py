"""Which adapters have metric series of their own: the busiest N versions; the rest share ``other``."""

from __future__ import annotations

from collections.abc import Callable

from server.registry import AdapterKey

Label = tuple[str, str]  # adapter, version
BASE: Label = ("", "")  # requests to the base itself
OTHER: Label = ("other", "")
HALF_LIFE = 10_000  # requests after which older traffic counts half


class AdapterLabels:
    """Gives label pairs to adapter versions; at most ``limit`` versions have one of their own at any time.

    A version without one takes the place of the least busy one when it has had twice its recent requests, so that
    equally busy adapters do not push each other out again and again. ``on_drop`` is told which series ends.
    """

    def __init__(self, limit: int, on_drop: Callable[[Label], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._own: set[Label] = set()
        self._traffic: dict[Label, float] = {}
        self._requests = 0

    def count(self, key: AdapterKey | None) -> Label:
        """The label of ``key`` for one more request."""
        self._age()
        if key is None:
            return BASE
        label = (key.name, str(key.version))
        self._traffic[label] = self._traffic.get(label, 0.0) + 1.0
        if label in self._own or self._admit(label):
            return label
        return OTHER

    def current(self, key: AdapterKey | None) -> Label:
        """The label of ``key`` as things are, without counting a request."""
        label = BASE if key is None else (key.name, str(key.version))
        return label if key is None or label in self._own else OTHER

    def retire(self, key: AdapterKey) -> None:
        """``key`` is out of service: its series stay to be read, and are the first to give place."""
        self._traffic[(key.name, str(key.version))] = 0.0

    def _admit(self, label: Label) -> bool:
        if len(self._own) >= self._limit:
            least = min(self._own, key=lambda own: self._traffic.get(own, 0.0))
            if self._traffic[label] < 2 * self._traffic.get(least, 0.0):
                return False
            self._own.remove(least)
            self._on_drop(least)
        self._own.add(label)
        return True

    def _age(self) -> None:
        self._requests += 1
        if self._requests % HALF_LIFE == 0:
            self._traffic = {label: n / 2 for label, n in self._traffic.items() if n > 0.1}
