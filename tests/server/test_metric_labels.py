from __future__ import annotations

from server.adapter_key import AdapterKey
from server.metric_labels import BASE, HALF_LIFE, OTHER, AdapterLabels, Label


def key(name: str, version: int = 1) -> AdapterKey:
    return AdapterKey(name, version, "d")


def make(limit: int) -> tuple[AdapterLabels, list[Label]]:
    dropped: list[Label] = []
    return AdapterLabels(limit, dropped.append), dropped


def test_the_base_and_up_to_n_versions_have_labels() -> None:
    labels, dropped = make(2)
    assert labels.count(None) == BASE
    assert labels.count(key("a")) == ("a", "1")
    assert labels.count(key("a", 2)) == ("a", "2")
    assert labels.count(key("b")) == OTHER
    assert labels.current(key("b")) == OTHER
    assert labels.current(key("a")) == ("a", "1")
    assert labels.current(None) == BASE
    assert dropped == []


def test_a_busier_one_takes_the_place_of_the_least_busy() -> None:
    labels, dropped = make(2)
    for _ in range(5):
        labels.count(key("a"))
        labels.count(key("b"))
    labels.count(key("b"))
    for _ in range(9):
        assert labels.count(key("c")) == OTHER
    assert labels.count(key("c")) == ("c", "1")
    assert dropped == [("a", "1")]
    assert labels.count(key("a")) == OTHER


def test_equally_busy_ones_do_not_push_each_other_out() -> None:
    labels, dropped = make(3)
    for _ in range(200):
        for i in range(10):
            labels.count(key(f"a{i}"))
    assert dropped == []


def test_a_retired_version_gives_place_at_once() -> None:
    labels, dropped = make(1)
    for _ in range(100):
        labels.count(key("a"))
    labels.retire(key("a"))
    assert labels.current(key("a")) == ("a", "1")
    assert labels.count(key("a", 2)) == ("a", "2")
    assert dropped == [("a", "1")]


def test_old_traffic_counts_less() -> None:
    labels, dropped = make(1)
    for _ in range(2000):
        labels.count(key("old"))
    for _ in range(8 * HALF_LIFE):
        labels.count(None)
    for _ in range(40):
        labels.count(key("new"))
    assert dropped == [("old", "1")]


def test_versions_that_are_compared_keep_labels_of_their_own() -> None:
    labels, dropped = make(2)
    for _ in range(50):
        labels.count(key("b"))
        labels.count(key("c"))
    labels.keep("a", [key("a"), key("a", 2)])
    assert labels.count(key("a", 2)) == ("a", "2")
    assert labels.count(key("a")) == ("a", "1")
    assert sorted(dropped) == [("b", "1"), ("c", "1")]
    for _ in range(500):
        assert labels.count(key("b")) == OTHER
    labels.keep("d", [key("d")])
    assert labels.count(key("d")) == OTHER, "there are no more than there may be"
    labels.keep("a", [])
    labels.retire(key("a", 2))
    assert labels.count(key("b")) == ("b", "1")
