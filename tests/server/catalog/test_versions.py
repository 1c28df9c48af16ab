"""Which version of a name is live, which were before it, and which wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.adapter_key import AdapterKey
from server.catalog.versions import MAX_HISTORY, AdapterVersion, VersionHistory


def add(versions: VersionHistory, *, candidate: bool = False) -> int:
    number = versions.reserve()
    key = AdapterKey("json", number, "d")
    version = AdapterVersion(key=key, path=Path(str(key)), kind="lora", nbytes=1, num_virtual_tokens=0, created=0.0)
    versions.add(version, candidate=candidate)
    return number


def test_going_back_walks_the_way_that_was_come() -> None:
    versions = VersionHistory()
    for _ in range(3):
        add(versions)
    versions.activate(1)  # 1, 2, 3, 1
    walked = []
    while (number := versions.before()) is not None:
        versions.roll_back(number)
        walked.append(number)
    assert walked == [3, 2, 1]


def test_going_back_several_at_once_forgets_those_between() -> None:
    versions = VersionHistory()
    for _ in range(4):
        add(versions)
    versions.roll_back(2)
    assert versions.before() == 1
    versions.roll_back(4)  # by name: one that is no longer on the way back
    assert (versions.live, versions.before()) == (4, 1)


def test_candidates_and_deleted_versions_are_not_gone_back_to() -> None:
    versions = VersionHistory()
    add(versions)
    candidate = add(versions, candidate=True)
    add(versions)
    assert (candidate, versions.before()) == (2, 1)
    add(versions)
    versions.forget(3)
    assert versions.before() == 1
    versions.forget(1)
    assert versions.before() is None


def test_a_version_between_itself_is_no_version_before() -> None:
    versions = VersionHistory()
    for _ in range(2):
        add(versions)
    versions.activate(1)  # 1, 2, 1
    versions.forget(2)
    assert versions.before() is None


def test_the_way_back_has_an_end() -> None:
    versions = VersionHistory()
    for _ in range(2):
        add(versions)
    for turn in range(5 * MAX_HISTORY):
        versions.activate(1 + turn % 2)
    steps = 0
    while (number := versions.before()) is not None:
        versions.roll_back(number)
        steps += 1
    assert steps == MAX_HISTORY


def test_activating_a_candidate() -> None:
    versions = VersionHistory()
    add(versions)
    waiting, second = add(versions, candidate=True), add(versions)
    assert (versions.live, versions.candidates) == (second, {waiting})
    assert versions.activate(waiting) is versions.get(second)
    assert (versions.live, versions.candidates) == (waiting, set())


def test_the_live_version_cannot_be_forgotten() -> None:
    versions = VersionHistory()
    add(versions)
    with pytest.raises(AssertionError):
        versions.forget(1)


def test_a_refused_version_leaves_nothing() -> None:
    versions = VersionHistory()
    versions.release(versions.reserve())
    assert versions.is_blank
