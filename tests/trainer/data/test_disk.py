"""Sequences on disk: what is put in comes out, in any order, and a full disk is one line."""

from __future__ import annotations

import pytest

from trainer.data.disk import DiskList, Examples, TokenQuestions
from trainer.data.encoding import IGNORED, Example
from trainer.data.messages import TokenQuestion
from trainer.errors import DataError


def test_what_is_put_in_comes_out_in_any_order() -> None:
    kept = DiskList()
    data = [b"x" * (i % 7) for i in range(3000)]
    for one in data:
        kept.append(one)
    assert len(kept) == 3000
    assert [kept[i] for i in reversed(range(3000))] == data[::-1]


def test_examples_keep_ids_and_what_is_learned() -> None:
    given = [Example((1, 2, 70_000), (IGNORED, 2, 70_000)), Example((5,), (IGNORED,))]
    kept = Examples()
    for example in given:
        kept.append(example)
    assert list(kept) == given
    assert kept[-1] == given[-1]
    assert [len(example) for example in kept] == [3, 1]


def test_questions_keep_prompt_and_response() -> None:
    kept = TokenQuestions()
    kept.append(TokenQuestion((1, 2), "answer 译"))
    assert list(kept) == [TokenQuestion((1, 2), "answer 译")]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.disk.tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    kept = DiskList()
    with pytest.raises(DataError, match=r"the disk is full: the tokens are kept in .*; make room, or point TMPDIR"):
        kept.append(b"x" * (1 << 22))
