"""What versions take together, and which would go for another."""

from __future__ import annotations

from server.adapter_key import AdapterKey
from server.catalog.memory_ledger import Budget, MemoryLedger
from server.catalog.places import Place, Stage


def place(name: str, nbytes: int, **shared: int) -> Place:
    return Place(AdapterKey(name, 1, name), nbytes + sum(shared.values()), shared, stage=Stage.RESIDENT)


def ledger(*places: Place, max_bytes: int = 0, max_count: int = 0, pinned: str = "") -> MemoryLedger:
    made = MemoryLedger(Budget(max_bytes, max_count), lambda key: key.name in pinned)
    for one in places:
        made.add(one)
    return made


def names(places: list[Place]) -> str:
    return "".join(one.key.name for one in places)


def test_as_few_as_possible_go_oldest_first() -> None:
    kept = ledger(place("a", 10), place("b", 20), place("c", 10), max_bytes=40, pinned="a")
    assert kept.to_evict(place("d", 0)) == []
    assert names(kept.to_evict(place("d", 1))) == "b"
    assert names(kept.to_evict(place("d", 21))) == "bc"
    assert kept.can_fit(place("d", 30))
    assert not kept.can_fit(place("d", 31))
    assert names(ledger(place("a", 1), place("b", 1), max_count=2).to_evict(place("c", 1))) == "a"


def test_what_leaves_already_is_not_told_to_leave_again() -> None:
    first, second = place("a", 10), place("b", 10)
    kept = ledger(first, second, max_bytes=20)
    first.stage = Stage.LEAVING
    assert kept.to_evict(place("c", 10)) == []
    assert names(kept.to_evict(place("c", 20))) == "b"
    assert not kept.fits(place("c", 1)), "it is there still"


def test_shared_contents_count_once_and_go_with_their_last_user() -> None:
    first, second = place("a", 1, common=100), place("b", 2, common=100)
    kept = ledger(first, second, max_bytes=110)
    assert kept.nbytes == 103
    assert kept.fits(place("c", 7, common=100))
    assert not kept.fits(place("c", 8, common=100))
    assert names(kept.to_evict(place("c", 8, common=100))) == "a"
    assert names(kept.to_evict(place("c", 9, other=100))) == "ab"
    kept.remove(first)
    assert kept.nbytes == 102
    kept.remove(second)
    assert (kept.nbytes, len(kept)) == (0, 0)
    kept.add(place("d", 5))
    kept.resize(next(iter(kept)), 7, {"common": 4})
    assert kept.nbytes == 7
    kept.check_integrity()
