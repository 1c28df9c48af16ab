"""Versions that wait for their turn to be loaded, and those that have it. Plain bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator

from server.adapter_key import AdapterKey
from server.catalog.places import Place

MAX_LOADING = 2  # one is read while another is tried


class LoadQueue:
    """Places in the order in which they were first asked for; up to MAX_LOADING have their turn at once."""

    def __init__(self) -> None:
        self._waiting: dict[AdapterKey, Place] = {}
        self._loading: dict[AdapterKey, Place] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Place]:
        """Those that wait."""
        return iter(list(self._waiting.values()))

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._waiting

    @property
    def loading(self) -> frozenset[AdapterKey]:
        """Those that have their turn."""
        return frozenset(self._loading)

    @property
    def first(self) -> Place | None:
        """Whose turn comes next."""
        return next(iter(self._waiting.values()), None)

    @property
    def due(self) -> Place | None:
        """Whose turn may begin now: what may have ended an engine is loaded alone."""
        place = self.first
        if place is None:
            return None
        alone = place.deaths or any(other.deaths for other in self._loading.values())
        return place if len(self._loading) < (1 if alone else MAX_LOADING) else None

    def add(self, place: Place) -> None:
        """It waits, behind all others."""
        self._waiting[place.key] = place

    def put_back(self, place: Place) -> None:
        """It waits again, where it was when it was first asked for."""
        waiting = sorted([place, *self._waiting.values()], key=lambda one: one.asked)
        self._waiting = {one.key: one for one in waiting}

    def leave(self, place: Place) -> None:
        """It waits no more."""
        self._waiting.pop(place.key, None)

    def begin(self, place: Place) -> None:
        """Its turn begins."""
        del self._waiting[place.key]
        self._loading[place.key] = place

    def end(self, place: Place) -> None:
        """Its turn is over."""
        self._loading.pop(place.key, None)
