"""What a guard lets through, and what the tag of a name is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.adapter_key import AdapterKey
from server.catalog.guard import ANY, Guard, NameState, state_of
from server.catalog.versions import AdapterVersion, NameRecord, NameSettings, VersionHistory
from server.errors import ConflictError, PreconditionFailedError


def test_what_a_guard_lets_through() -> None:
    there, gone = NameState("n", '"t"', live=3), NameState("n", '"t"', exists=False)
    for tags in (ANY, {'"t"'}, {'"s"', '"t"'}):
        Guard(if_match=frozenset(tags)).check(there)
        with pytest.raises(PreconditionFailedError):
            Guard(if_none_match=frozenset(tags)).check(there)
    for tags in ({'"s"'}, {'W/"t"'}):
        with pytest.raises(PreconditionFailedError) as refused:
            Guard(if_match=frozenset(tags)).check(there)
        assert refused.value.etag == '"t"'
    Guard(if_none_match=frozenset({'"s"'})).check(there)
    with pytest.raises(PreconditionFailedError):
        Guard(if_none_match=frozenset({'W/"t"'})).check(there)
    Guard(if_none_match=ANY).check(gone)
    with pytest.raises(PreconditionFailedError, match="there is no adapter 'n'"):
        Guard(if_match=ANY).check(gone)
    for expected, target in ((None, None), (3, None), (0, 3)):
        Guard(expected_live=expected).check(there, target=target)
    for expected, target in ((0, None), (2, 1)):
        with pytest.raises(ConflictError, match="serves version 3"):
            Guard(expected_live=expected).check(there, target=target)


def history(*digests: str, revision: int = 1, **record: Any) -> VersionHistory:
    versions = [
        AdapterVersion(
            key=AdapterKey("n", number, digest),
            path=Path(f"/elsewhere/{revision}"),
            kind="lora",
            nbytes=1,
            num_virtual_tokens=0,
            created=float(revision),
        )
        for number, digest in enumerate(digests, 1)
    ]
    return VersionHistory(NameRecord(**{"last": len(digests), **record}), versions, revision=revision)


def test_a_tag_is_of_what_was_decided_alone() -> None:
    def tag(history: VersionHistory) -> str:
        return state_of("n", history).etag

    usual = history("a", "b", live=1, candidates={2})
    same = history("a", "b", live=1, candidates={2}, last=9, revision=7)
    assert tag(usual) == tag(same), "numbers given out, files and revisions are nobody's decision"
    raw = msgspec.json.encode(history("a", live=1, candidates={3, 1, 2}, served=[1, 2]).record)
    kept = VersionHistory(msgspec.json.decode(raw, type=NameRecord), history("a").all())
    assert tag(kept) == tag(history("a", live=1, candidates={2, 3, 1}, served=[1, 2])), (
        "the order of a set is not in it"
    )
    others = [
        VersionHistory(),
        history("a", "b", live=2, candidates={2}),
        history("a", "b", live=1),
        history("a", "c", live=1, candidates={2}),
        history("a", live=1, candidates={2}),
        history("a", "b", live=1, candidates={2}, served=[2]),
        history("a", "b", live=1, candidates={2}, settings=NameSettings(pinned=True)),
    ]
    assert len({tag(usual), *map(tag, others)}) == len(others) + 1
    assert state_of("m", usual).etag != tag(usual)


def test_what_a_guard_is_compared_with() -> None:
    assert (state_of("n", None).exists, state_of("n", None).live) == (False, 0)
    there = state_of("n", history("a", live=1))
    assert (there.exists, there.live) == (True, 1)
    gone = history("a", live=1)
    gone.remove()
    assert (state_of("n", gone).exists, state_of("n", gone).live) == (False, 0)
    assert state_of("n", gone).etag != state_of("n", None).etag
