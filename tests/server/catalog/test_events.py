from __future__ import annotations

from server.catalog.events import Repetitions


def test_one_of_a_sort_passes_in_a_window_and_the_others_are_counted() -> None:
    refusals = Repetitions(window=60, most=10)
    assert [refusals.passes("a", t) for t in (0, 1, 59)] == [True, False, False]
    assert refusals.passes("b", 59)
    assert refusals.left_out(59.5) == []
    assert refusals.left_out(60) == [("a", 2)]
    assert refusals.left_out(61) == [], "told once"
    assert refusals.passes("a", 61)


def test_many_sorts_are_one() -> None:
    refusals = Repetitions(window=60, most=10)
    assert sum(refusals.passes(sort, 0) for sort in range(1000)) == 10
    assert not refusals.passes("new", 1)
    assert refusals.left_out(60) == [(None, 991)]


def test_a_flood_that_nobody_asks_about_takes_no_room() -> None:
    refusals = Repetitions(window=1, most=5)
    for t in range(100):
        for sort in range(5):
            refusals.passes(sort, t)
            refusals.passes(sort, t)
    assert len(refusals.left_out(1000)) <= 10
