"""What the soak calls wrong, and when a fault excuses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from loadtests.soak.ledger import Ledger
from loadtests.soak.references import Answer, Package

BASE = Answer((1, 2), 3, "of the base")
ONE, TWO = (Package(name, Path(name), (Answer((1, 2), 3, f"of {name}"),)) for name in ("one", "two"))


def test_answers_are_judged_by_the_version_that_gave_them_even_if_it_is_known_later() -> None:
    ledger = Ledger()
    ledger.answered(None, None, BASE, "of the base")
    ledger.answered("a", "a@1", BASE, "of one")
    ledger.answered("a", "a@2", BASE, "of two")
    ledger.judge()
    assert (ledger.counts["answers"], ledger.counts["compared"]) == (3, 1)
    ledger.knows("a@1", ONE)
    ledger.knows("a@2", TWO)
    ledger.judge_all()
    assert ledger.counts["compared"] == 3
    assert ledger.sound, ledger.text()


@pytest.mark.parametrize(
    ("adapter", "version", "text", "words"),
    [
        (None, None, "of one", "the base answered 'of one' instead of 'of the base'"),
        ("a", "a@1", "of two", "a@1 (one) answered 'of two' instead of 'of one'"),
        ("a", "a@9", "of one", "a@9 answered, but was never uploaded"),
        ("a", None, "of the base", "the base answered for a"),
        ("a", "b@1", "of one", "b@1 answered for a"),
        (None, "a@1", "of one", "a@1 answered for the base"),
    ],
)
def test_what_is_wrong(adapter: str | None, version: str | None, text: str, words: str) -> None:
    ledger = Ledger()
    ledger.knows("a@1", ONE)
    ledger.answered(adapter, version, BASE, text)
    ledger.judge_all()
    assert len(ledger.wrong) == 1
    assert words in ledger.wrong[0]
    assert not ledger.sound
    assert words in ledger.text()


def test_a_version_has_one_content_for_good() -> None:
    ledger = Ledger()
    ledger.knows("a@1", ONE)
    ledger.knows("a@1", ONE)
    assert not ledger.wrong
    ledger.knows("a@1", TWO)
    assert ledger.wrong == ["a@1 was uploaded as one and then again as two"]


def test_faults_excuse_what_they_overlap_and_no_more() -> None:
    ledger = Ledger()
    before = time.monotonic()
    ledger.saw_gap(before, 0.5)
    fault = ledger.fault_begins("kills", "server1")
    assert ledger.disturbed(time.monotonic(), "server1")
    assert not ledger.disturbed(before, "server2")
    ledger.fault_ends(fault)
    ledger.saw_gap(before, 9.0)
    assert ledger.disturbed(before)
    assert not ledger.disturbed(time.monotonic())
    assert (ledger.gap, ledger.counts["kills"], len(ledger.recoveries["kills"])) == (0.5, 1, 1)


@pytest.mark.parametrize(
    ("kind", "excused"),
    [
        ("kills", {"engine_unavailable"}),
        ("server kills", {"engine_unavailable", None}),
        ("database stops", {"catalog_unavailable"}),
        ("store away", {"store_unavailable"}),
    ],
)
def test_a_fault_excuses_its_own_errors_alone(kind: str, excused: set[str | None]) -> None:
    ledger = Ledger()
    ledger.fault_begins(kind, "server1")
    codes = ("engine_unavailable", "catalog_unavailable", "store_unavailable", "adapter_failed", "internal_error", None)
    assert {code for code in codes if ledger.excuses(code, time.monotonic(), "server1")} == excused
    assert not any(ledger.excuses(code, time.monotonic(), "server2") for code in codes)


def test_recovery_counts_from_when_all_was_whole_again() -> None:
    ledger = Ledger()
    fault = ledger.fault_begins("database stops")
    fault.began = fault.whole = time.monotonic() - 100
    fault.whole_again()
    ledger.fault_ends(fault)
    assert ledger.recoveries["database stops"][0] < 50
    assert ledger.disturbed(time.monotonic() - 1, "server2")


def test_a_soak_that_compared_nothing_shows_nothing() -> None:
    assert not Ledger().sound
