"""Which adapter versions have series of their own among the metrics: the busiest N. The rest share ``other``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.adapter_key import AdapterKey

Label = tuple[str, str]  # adapter, version
BASE: Label = ("", "")  # requests to the base itself
OTHER: Label = ("other", "")
HALF_LIFE = 10_000  # requests after which older traffic counts half


class AdapterLabels:
    """Gives label pairs to adapter versions; at most ``limit`` versions have one of their own at any time.

    A version without one takes the place of the least busy one when it has had twice its recent requests, so that
    equally busy adapters do not push each other out again and again. Those to ``keep``, which somebody compares, get
    one with their first request and do not lose it. ``on_drop`` is told which series ends.
    """

    def __init__(self, limit: int, on_drop: Callable[[Label], None]) -> None:
        self._limit = limit
        self._on_drop = on_drop
        self._own: set[Label] = set()
        self._kept: dict[str, frozenset[Label]] = {}  # by adapter
        self._traffic: dict[Label, float] = {}
        self._requests = 0

    def count(self, key: AdapterKey | None) -> Label:
        """The label of ``key`` for one more request, or one more error. What ``other`` has counted stays there."""
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

    def keep(self, adapter: str, keys: Iterable[AdapterKey]) -> None:
        """Of ``adapter`` keep ``keys`` from now on, and no others."""
        self._kept.pop(adapter, None)
        if labels := frozenset((key.name, str(key.version)) for key in keys):
            self._kept[adapter] = labels

    def _is_kept(self, label: Label) -> bool:
        return label in self._kept.get(label[0], ())

    def _admit(self, label: Label) -> bool:
        if len(self._own) >= self._limit:
            others = [own for own in self._own if not self._is_kept(own)]
            least = min(others, key=lambda own: self._traffic.get(own, 0.0), default=None)
            if least is None:
                return False
            if self._traffic[label] < 2 * self._traffic.get(least, 0.0) and not self._is_kept(label):
                return False
            self._own.remove(least)
            self._on_drop(least)
        self._own.add(label)
        return True

    def _age(self) -> None:
        self._requests += 1
        if self._requests % HALF_LIFE == 0:
            self._traffic = {label: n / 2 for label, n in self._traffic.items() if n > 0.1}
