from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.catalog.files import Purpose
from server.errors import InvalidRequestError
from server.files.checks import check_file, check_training
from server.files.lines import MAX_LINE_BYTES, Problems
from server.files.training_rows import RowKind

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
REQUEST = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}


def written(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def refusal(path: Path, purpose: Purpose) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        check_file(path, purpose)
    assert refused.value.param == "file"
    return str(refused.value)


def test_sound_files_pass(tmp_path: Path) -> None:
    path = written(tmp_path / "f", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", GOOD, b"  ")
    check_file(path, Purpose.FINE_TUNE)
    assert check_training(path, Problems()) == (RowKind.CHAT, 2)
    check_file(written(tmp_path / "b", REQUEST, {**REQUEST, "custom_id": "2"}), Purpose.BATCH)
    check_file(written(tmp_path / "u", b"\x00anything"), Purpose.USER_DATA)


def test_each_problem_has_its_line_and_reason(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "f", GOOD, b"{oops", [1], {"prompt": "p", "completion": "c"}), Purpose.FINE_TUNE)
    assert "line 2: it is not valid JSON" in said
    assert "line 3: must be an object, not a list" in said
    assert "line 4: is a completion row, and rows before it are chat rows" in said
    said = refusal(
        written(tmp_path / "b", REQUEST, REQUEST, {**REQUEST, "custom_id": "3", "method": "GET"}), Purpose.BATCH
    )
    assert "line 2: custom_id: '1' stands on an earlier line" in said
    assert "line 3: method: must be POST" in said


def test_of_many_problems_the_first_are_told_and_the_others_counted(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "f", *[b"x"] * 40), Purpose.FINE_TUNE)
    assert "line 10: " in said
    assert "line 11: " not in said
    assert "and 30 more problems" in said


@pytest.mark.parametrize("purpose", [Purpose.FINE_TUNE, Purpose.BATCH, Purpose.USER_DATA])
def test_empty_files_are_refused(tmp_path: Path, purpose: Purpose) -> None:
    assert "holds no" in (said := refusal(written(tmp_path / "f"), purpose)) or "is empty" in said


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "f", b"[" * (MAX_LINE_BYTES + 2), b"{}")
    assert "line 1: it is longer than 8 MiB; the rest was not looked at" in refusal(path, Purpose.FINE_TUNE)


def test_deep_nesting_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    assert "line 1: it is not valid JSON" in refusal(written(tmp_path / "f", b'{"a":' + b"[" * 100_000), Purpose.BATCH)
