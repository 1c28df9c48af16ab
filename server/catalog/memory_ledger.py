"""Which adapter versions take memory, least recently used first, and which would go to make room for another.

Plain bookkeeping: no asyncio, no engine, no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.adapter_key import AdapterKey
from server.catalog.places import Place, Stage
from server.errors import ADAPTER_MEMORY, BudgetError, NoRoomError


@dataclass(frozen=True)
class Budget:
    """How many bytes resident versions may take, and how many there may be; 0: no limit."""

    max_bytes: int = 0
    max_count: int = 0

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self.max_bytes or self.max_count)


class Weight:
    """What places take together; what some of them share is in memory once."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self.nbytes = self.count = 0
        self._users: Counter[str] = Counter()  # of shared contents, by digest
        for place in places:
            self.add(place)

    def of(self, place: Place) -> int:
        """Bytes that one more place adds."""
        return place.nbytes - sum(nbytes for digest, nbytes in place.shared.items() if self._users[digest])

    def add(self, place: Place) -> None:
        """Count a place."""
        self.nbytes += self.of(place)
        self.count += 1
        self._users.update(place.shared.keys())

    def remove(self, place: Place) -> None:
        """Count a place no more."""
        self._users.subtract(dict.fromkeys(place.shared, 1))
        self.nbytes -= self.of(place)
        self.count -= 1


class MemoryLedger:
    """The places that take memory, least recently used first. ``is_pinned`` says which must stay."""

    def __init__(self, budget: Budget, is_pinned: Callable[[AdapterKey], bool]) -> None:
        self.budget = budget
        self._is_pinned = is_pinned
        self._weight = Weight()
        self._places: dict[AdapterKey, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(list(self._places.values()))

    @property
    def nbytes(self) -> int:
        """What all take."""
        return self._weight.nbytes

    def add(self, place: Place) -> None:
        """Count a place, as the most recently used."""
        self._places[place.key] = place
        self._weight.add(place)

    def remove(self, place: Place) -> None:
        """Count a place no more."""
        del self._places[place.key]
        self._weight.remove(place)

    def resize(self, place: Place, nbytes: int, shared: Mapping[str, int]) -> None:
        """What a counted place takes is known now."""
        self._weight.remove(place)
        place.nbytes, place.shared = nbytes, shared
        self._weight.add(place)

    def touch(self, place: Place) -> None:
        """A place is used."""
        self._places[place.key] = self._places.pop(place.key)

    def fits(self, place: Place) -> bool:
        """Whether one more place is within the budget now."""
        return self._has_room(self._weight, place)

    @property
    def is_within(self) -> bool:
        """Whether everything that is counted is within the budget."""
        return self._within(self._weight.nbytes, self._weight.count)

    def can_fit(self, place: Place) -> bool:
        """Whether it would be if all went that may go."""
        return self._has_room(Weight(pinned for pinned in self if self._is_pinned(pinned.key)), place)

    def no_room(self, place: Place) -> BudgetError:
        """Why a place cannot fit."""
        most = self.budget
        needs = f"{place.key} takes {place.nbytes / 1e6:.1f} MB of memory"
        if most.max_bytes and place.nbytes > most.max_bytes:
            allowed = f"--max-adapter-gb allows {most.max_bytes / 1e6:.1f} MB"
            return BudgetError(f"{needs}, and {allowed} for all; raise it", code=ADAPTER_MEMORY, nbytes=place.nbytes)
        return NoRoomError(
            f"{needs}, and pinned adapters leave no room for it (--max-adapter-gb, --max-resident); unpin one, or "
            "try again later",
            code=ADAPTER_MEMORY,
            nbytes=place.nbytes,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless everything that is counted takes memory, within the budget."""
        assert all(place.stage is not Stage.WAITING for place in self)
        assert self.nbytes == Weight(self).nbytes
        assert self.is_within

    def to_evict(self, place: Place) -> list[Place]:
        """Idle places, least recently used first, as many as have to go for ``place``; they may be too few."""
        staying = [other for other in self if other.stage is not Stage.LEAVING]
        return self._fewest(place, staying, lambda other: other.is_idle)

    def to_press(self, place: Place) -> list[Place]:
        """Places in use, as many as have to be left by their users for ``place`` beside those pressed already."""
        staying = [other for other in self if other.stage is not Stage.LEAVING and not other.pressed]
        return self._fewest(place, staying, lambda other: other.stage is Stage.RESIDENT)

    def idle(self) -> Place | None:
        """The least recently used place that may go at once."""
        return next((p for p in self._places.values() if p.is_idle and not self._is_pinned(p.key)), None)

    def _fewest(self, place: Place, staying: Sequence[Place], may_go: Callable[[Place], bool]) -> list[Place]:
        weight = Weight(staying)
        found: list[Place] = []
        for other in staying:
            if self._has_room(weight, place):
                break
            if may_go(other) and not self._is_pinned(other.key):
                found.append(other)
                weight.remove(other)
        return found

    def _has_room(self, weight: Weight, place: Place) -> bool:
        return self._within(weight.nbytes + weight.of(place), weight.count + 1)

    def _within(self, nbytes: int, count: int) -> bool:
        most = self.budget
        return (not most.max_bytes or nbytes <= most.max_bytes) and (not most.max_count or count <= most.max_count)
