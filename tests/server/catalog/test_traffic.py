from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.catalog.canary_rules import Rules
from server.catalog.traffic import (
    UNITS,
    Canary,
    Ended,
    Shadow,
    Traffic,
    after_change,
    forgotten,
    lay_out,
    point,
    with_canaries,
    with_scores,
    without,
)

USERS = [f"user-{i}" for i in range(400)]
weights_of_three = st.lists(st.integers(0, UNITS // 3), min_size=3, max_size=3).map(
    lambda units: {version: unit / UNITS for version, unit in enumerate(units, 2)}
)


def split(traffic: Traffic, **weights: float) -> Traffic:
    """``traffic`` with canaries v2=0.1, ..."""
    numbers = {int(version[1:]): weight for version, weight in weights.items()}
    wanted = [Canary(version=version, parts=(), began=0.0) for version in numbers]
    return with_canaries(traffic, wanted, list(numbers.values()))


def owners(traffic: Traffic, name: str = "a") -> list[int | None]:
    return [traffic.drawn(name, user) for user in USERS]


def units(parts: tuple[tuple[int, int], ...]) -> int:
    return sum(end - begin for begin, end in parts)


@given(st.lists(weights_of_three, min_size=1, max_size=5))
def test_whoever_changes_side_leaves_or_joins_what_changed(changes: list[dict[int, float]]) -> None:
    """Over any history of weights: parts are as large as asked for, disjoint, and none moves between two canaries."""
    parts: dict[int, tuple[tuple[int, int], ...]] = {}
    for weights in changes:
        before, parts = parts, lay_out(parts, weights)
        assert {version: units(owned) for version, owned in parts.items()} == {
            version: round(weight * UNITS) for version, weight in weights.items()
        }
        every = sorted(part for owned in parts.values() for part in owned)
        assert all(0 <= begin < end <= UNITS for begin, end in every)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(every))
        for version, owned in before.items():  # one that grows loses nothing, one that shrinks gains nothing
            common = sum(max(0, min(end, e) - max(begin, b)) for begin, end in owned for b, e in parts[version])
            assert common == min(units(owned), units(parts[version]))


@given(st.floats(0, 1), st.floats(0, 1))
def test_growing_only_moves_requests_from_old_to_new(one: float, other: float) -> None:
    small, large = sorted((one, other))
    first = split(Traffic(), v2=small)
    second = split(first, v2=large)
    for before, after in zip(owners(first), owners(second), strict=True):
        assert before == after or (before is None and after == 2)


def test_growing_one_of_several_takes_from_the_live_version_alone() -> None:
    first = split(Traffic(), v2=0.2, v3=0.2, v4=0.2)
    second = split(first, v2=0.2, v3=0.55, v4=0.2)
    moved = {(a, b) for a, b in zip(owners(first), owners(second), strict=True) if a != b}
    assert moved == {(None, 3)}


@pytest.mark.parametrize("weight", [0.01, 0.05, 0.5, 0.95])
def test_shares_are_what_was_asked_for(weight: float) -> None:
    traffic, count = split(Traffic(), v2=weight), 4000
    deviation = 5 * math.sqrt(weight * (1 - weight) * count)  # one in a million
    for sticky in ([None] * count, [f"user-{i}" for i in range(count)]):
        drawn = sum(traffic.drawn("a", one) == 2 for one in sticky)
        assert abs(drawn - weight * count) < deviation


def test_all_or_nobody() -> None:
    assert set(owners(split(Traffic(), v2=1.0))) == {2}
    assert set(owners(split(Traffic(), v2=0.0))) == {None}
    assert set(owners(Traffic())) == {None}
    assert units(split(Traffic(), v2=1e-9).canaries[0].parts) == 1, "more than nobody is somebody"


def test_two_servers_draw_alike_and_two_canaries_apart() -> None:
    traffic = split(Traffic(), v2=0.3)
    other = msgspec.json.decode(msgspec.json.encode(traffic), type=Traffic)
    assert other == traffic
    assert owners(other) == owners(traffic)
    again = split(without(traffic, [2]), v2=0.3)
    assert again.salt != traffic.salt
    assert owners(again) != owners(traffic), "the same people are not asked first every time"
    assert owners(traffic, "a") != owners(traffic, "b")
    assert [point("a", "user", "salt"), point("a", "\ud800", "salt")] == [585670, 259075], "stays as it is for ever"


def test_an_end_leaves_nothing_of_a_version() -> None:
    traffic = with_scores(split(Traffic(), v2=0.3, v3=0.1), 2, {"f1": 0.5})
    traffic = msgspec.structs.replace(traffic, shadow=Shadow(version=2, weight=0.5, began=1.0))
    ended = Ended(version=2, outcome="aborted", reason="slow", at=2.0)
    left = without(traffic, [2], ended)
    assert left.versions == {3}
    assert left.shadow is None
    assert left.ended == ended
    assert left.scores == {2: {"f1": 0.5}}, "the version is what it was"
    gone = forgotten(traffic, 2, 3.0)
    assert gone.versions == {3}
    assert gone.scores == {}
    assert gone.ended is not None
    assert gone.ended.outcome == "deleted"
    assert forgotten(left, 2, 3.0).ended == ended
    assert left.canaries == traffic.canaries[1:]
    assert left.salt == traffic.salt
    assert not without(left, [3]).is_split


def test_a_change_of_the_live_version_ends_all() -> None:
    traffic = msgspec.structs.replace(split(Traffic(), v2=0.3), shadow=Shadow(version=3, weight=0.5, began=1.0))
    for live, outcome in ((2, "promoted"), (1, "replaced")):
        left = after_change(traffic, live, 5.0)
        assert not left.is_split
        assert left.ended is not None
        assert (left.ended.version, left.ended.outcome, left.ended.at) == (2, outcome, 5.0)
    assert after_change(Traffic(), 1, 5.0) == Traffic()


def test_scores_add_up() -> None:
    traffic = with_scores(with_scores(Traffic(), 2, {"f1": 0.5, "em": 0.1}), 2, {"f1": 0.6})
    assert traffic.scores == {2: {"f1": 0.6, "em": 0.1}}
    assert msgspec.json.decode(msgspec.json.encode(traffic), type=Traffic) == traffic


def test_an_empty_record_is_empty() -> None:
    assert msgspec.json.encode(Traffic()) == b"{}"
    canary = Canary(version=2, parts=((0, 50_000),), began=1.0, rules=Rules(max_error_rate=0.1))
    assert canary.weight == 0.05
    assert b"max_error_rate" in msgspec.json.encode(canary)
